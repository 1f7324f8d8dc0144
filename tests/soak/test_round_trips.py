"""Pickles, templates and hostile texts: what goes in comes out, or is refused by name."""

import json
import pickle
import random
from html.parser import HTMLParser

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

from nnsight_nla import NLAError, Reading, ReconstructionError, Sampling, TokenReading
from nnsight_nla.checkpoint.prompt import Prompt
from nnsight_nla.checkpoint.reply import extract, proper, snippets, wrap
from nnsight_nla.core.numeric import is_unicode
from tests.checkpoint.test_prompt import MARKER, TEMPLATE, _shared_tokenizer, checkpoint

HOSTILE = (
    "<script>alert(1)</script>", "</script><script>alert(1)</script>", "<!--", "-->", "]]>",
    "<img src=x onerror=alert(1)>", "&lt;b&gt;", "\x00", "\x1b[31m", "\u202e\u2066", "\ud800",
    "{{ 7*7 }}", "{0.__class__}", "%s%n", "</explanation>", "<explanation>", "'\"`", "\r\n",
    "\u2028", "é" * 50, "𝔘𝔫𝔦", "javascript:alert(1)", "</title>", "<svg/onload=alert(1)>",
    "=cmd|' /C calc'!A0", "㈎", "<|im_end|>",
)  # fmt: skip
quiet = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck),
         "phases": (Phase.generate,)}  # fmt: skip
hostile = st.lists(st.sampled_from(HOSTILE) | st.text(max_size=12), max_size=4).map("".join)
COUNT = 10_000


def test_pickles(nla, residuals, figure):
    """Handles in every state, sliced and nested, with every protocol, come back equal."""
    rng, tried = random.Random(0), 0
    known = nla.explain(residuals).text
    for _ in range(1_000):
        rows = [rng.randrange(len(residuals)) for _ in range(rng.randint(1, 6))]
        vectors = residuals[rows].clone()
        bad = rng.random() < 0.3
        if bad:
            vectors[0] = rng.choice([0.0, torch.nan, torch.inf])
        handle = nla.explain(vectors)
        if rng.random() < 0.5:
            nla.resolve(handle)
        if rng.random() < 0.3:
            handle = handle[rng.randrange(len(rows)) :]
            rows = rows[-len(handle) :]
        again = pickle.loads(pickle.dumps(handle, protocol=rng.randint(2, 5)))
        assert again.resolved == handle.resolved
        assert again.errors == handle.errors
        for number, row in enumerate(rows):
            if (number,) not in again.errors:
                assert again[number].text == handle[number].text == known[row]
        json.dumps(again.to_dict(), allow_nan=False)
        tried += 1
    figure(
        "pickled handles: pending, settled, sliced, with bad rows", tried, "same texts and errors"
    )


def test_damaged_pickles(nla, residuals, figure):
    """A damaged pickle raises; it never gives another text."""
    handle = nla.explain(residuals[-2:])
    text, data = handle.text, pickle.dumps(handle)
    rng, raised = random.Random(1), 0
    for _ in range(300):
        try:
            assert pickle.loads(data[: rng.randrange(len(data))]).text == text
        except AssertionError:
            raise
        except Exception:
            raised += 1
    figure("pickles cut at a random byte", 300, f"{raised} raised, none gave another text")
    assert raised == 300


def test_templates(figure):
    """Any template gives a prompt that is the template verbatim, or one of our errors."""
    live, refused, tried = _shared_tokenizer(), 0, 0

    @seed(0)
    @settings(max_examples=COUNT, **quiet)
    @given(hostile, st.sampled_from([TEMPLATE, "{injection_char}", ""]), hostile)
    def run(before: str, middle: str, after: str) -> None:
        nonlocal refused, tried
        template = before + middle + after
        tried += 1
        try:
            prompt = Prompt.render(checkpoint(live, template, left_id=None, right_id=None), live)
        except NLAError:
            refused += 1
            return
        filled = template.replace("{injection_char}", MARKER)
        assert prompt.text == f"<|bos|><|user|>{filled}<|end|><|assistant|>"

    run()
    figure("templates", tried, f"{tried - refused} verbatim, {refused} refused")


class Tags(HTMLParser):
    """The elements of a page, in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))


def test_hostile_texts_in_pages_and_files(tmp_path, figure):
    """A page with hostile texts has no other elements; a file gives the texts back."""
    tried = 0

    def reading(text: str) -> Reading:
        record = TokenReading(
            0, text, "prompt", explanation=text, norm=1.0, trust=text, grade="strong"
        )
        return Reading((record, record), text, text, 3)

    plain = [Tags(page).found for page in pages(reading("plain"), tmp_path)]

    @seed(0)
    @settings(max_examples=COUNT // 10, **quiet)
    @given(hostile.filter(bool))
    def run(text: str) -> None:
        nonlocal tried
        tried += 1
        found = reading(text)
        assert [Tags(page).found for page in pages(found, tmp_path)] == plain
        try:
            found.to_parquet(tmp_path / "r.parquet")
        except NLAError:
            assert not is_unicode(text)
        else:
            assert Reading.from_parquet(tmp_path / "r.parquet") == found

    run()
    figure("hostile texts on pages and in files", tried, "no element added, files give them back")


def pages(reading: Reading, folder) -> list[str]:
    path = reading.to_html(folder / "r.html", title="plain")
    return [path.read_text("utf-8"), reading._repr_html_(), reading.beside(reading)._repr_html_()]


def test_hostile_replies(figure):
    """Whatever a verbalizer writes is taken apart without loss, and a good reply is recognized."""
    tried = 0

    @seed(0)
    @settings(max_examples=COUNT, **quiet)
    @given(hostile)
    def run(text: str) -> None:
        nonlocal tried
        tried += 1
        found, _ = extract(text)
        assert found in text or found == text.strip()
        assert all(part in found for part in snippets(found))
        if not any(tag in text for tag in ("<explanation>", "</explanation>")) and text.strip():
            assert extract(wrap(text)) == (text.strip(), True)
            assert proper(wrap(text)) is None

    run()
    figure("hostile replies", tried, "taken apart without loss")


def test_hostile_texts_in_the_reconstructor(nla, figure):
    """A text has a finite reconstruction, or is refused by name."""
    tried = refused = 0

    @seed(0)
    @settings(max_examples=COUNT // 10, **quiet)
    @given(hostile)
    def run(text: str) -> None:
        nonlocal tried, refused
        tried += 1
        try:
            assert nla.reconstruct(text).isfinite().all()
        except ReconstructionError:
            refused += 1

    run()
    figure("hostile texts reconstructed", tried, f"{tried - refused} finite, {refused} refused")


def test_one_batch_or_many(nla, residuals, figure):
    """A vector's text does not depend on the vectors that it is verbalized with."""
    rng, tried = random.Random(2), 0
    short = Sampling(max_new_tokens=12)
    alone = [nla.explain(each, sampling=short).text for each in residuals]
    for _ in range(400):
        rows = [rng.randrange(len(residuals)) for _ in range(rng.randint(1, 12))]
        found = nla.explain(residuals[rows], sampling=short).text
        assert found == [alone[row] for row in rows]
        tried += len(rows)
    figure("vectors verbalized in batches of random size and order", tried, "text as when alone")
