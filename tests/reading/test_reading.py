"""Readings: what is read where, the parts of a text, the table, the file, the page's data."""

import json
import re
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings

from nnsight_nla import InjectionError, NLAError, Reading, Sampling, TokenReading, tiny, view

PARIS = "What a lovely day! People in Paris speak"
ROME = "What a lovely day! People in Rome speak"


@pytest.fixture(scope="module")
def paris(pair) -> Reading:
    model, nla = pair
    return nla.read(model, PARIS)


def test_every_token_with_what_explain_says_of_it(model, nla, paris):
    (span,) = nla.positions(model, PARIS)
    with model.trace(PARIS):
        thought = nla.explain(
            nla.layer(model).output[0], tokens=span.tokens, positions=span.positions
        )
    assert paris.tokens == span.tokens
    assert list(paris.explanations) == thought.text
    assert paris.positions == tuple(range(9))
    assert list(paris.warnings) == thought.warnings
    np.testing.assert_allclose(paris.norms, thought.vectors.norm(dim=-1), rtol=1e-5)
    assert "About Paris" in paris[-1].explanation
    assert (paris.layer, paris.target, paris.verbalizer) == (3, "target", "av")
    assert {record.part for record in paris} == {"prompt"}


def test_scores_are_the_round_trips_cosines(nla, paris, residuals):
    reconstructed = nla.reconstruct(list(paris.explanations))
    expected = torch.nn.functional.cosine_similarity(reconstructed, residuals)
    np.testing.assert_allclose(paris.scores, expected, atol=1e-4)
    assert paris[-1].grade == "high"
    assert paris[-1].trust.startswith("trust: high (cosine 0.9")


def test_without_a_reconstructor_there_are_texts_and_no_scores(model, paris):
    from nnsight_nla import NLA

    alone = NLA(tiny.paths()["av"], dtype=torch.float32)
    reading = alone.read(model, PARIS)
    assert reading.explanations == paris.explanations
    assert reading.scores == (None,) * 9


@pytest.mark.parametrize(
    ("positions", "read"),
    [(-1, [8]), (2, [2]), ([-1, 0, 0], [0, 8]), (slice(6, None), [6, 7, 8]), (range(2), [0, 1])],
)
def test_some_positions(model, nla, paris, positions, read):
    reading = nla.read(model, PARIS, positions=positions)
    assert list(reading.positions) == read
    assert reading.tokens == paris.tokens
    for place, record in enumerate(reading):
        assert record.read is (place in read)
        assert record.explanation == (paris[place].explanation if place in read else None)


def test_ids_and_the_text_they_stand_for_read_alike(model, nla, paris):
    ids = nla.positions(model, PARIS)[0].ids
    for prompt in (list(ids), ids, torch.tensor([ids])):
        assert nla.read(model, prompt).explanations == paris.explanations


def test_prompt_and_reply(model, nla, paris):
    reading = nla.read(model, PARIS, generate=3)
    with model.generate(PARIS, max_new_tokens=3, do_sample=False) as tracer:
        ids = tracer.result[0].save()
    assert reading.tokens == tuple(model.tokenizer.decode([token]) for token in ids)
    assert reading.explanations[:9] == paris.explanations
    assert [record.part for record in reading] == ["prompt"] * 9 + ["reply"] * 3
    only = nla.read(model, PARIS, generate=3, positions="reply")
    assert only.positions == (9, 10, 11)
    assert only.explanations[9:] == reading.explanations[9:]
    with model.trace(ids[None]):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert reading[-1].explanation == thought.text


def test_a_chat_is_told_from_its_template(model, nla):
    chat = [
        {"role": "user", "content": "What a lovely day!"},
        {"role": "assistant", "content": "People in Paris speak"},
    ]
    reading = nla.read(model, chat, positions=-1)
    by_part = {
        part: "".join(record.token for record in reading if record.part == part)
        for part in ("user", "assistant", "template")
    }
    assert by_part["user"] == "What a lovely day!"
    assert by_part["assistant"] == "People in Paris speak"
    assert by_part["template"] == "<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"
    more = nla.read(model, chat[:1], generate=2, positions="reply")
    assert [record.part for record in more][-2:] == ["reply", "reply"]
    assert "".join(r.token for r in more if r.part == "user") == "What a lovely day!"


def test_the_same_words_twice_are_each_their_own_turns(model, nla):
    chat = [{"role": role, "content": "The cow"} for role in ("user", "assistant", "user")]
    reading = nla.read(model, chat, positions=0)
    said = [record.part for record in reading if record.part != "template"]
    assert said == ["user", "user", "assistant", "assistant", "user", "user"]


def test_special_tokens_in_a_string_are_template(model, nla):
    reading = nla.read(model, "<|endoftext|>The cow", positions=0)
    assert [record.part for record in reading] == ["template", "prompt", "prompt"]


def test_an_edited_model_reads_as_it_runs(model, nla, paris):
    with model.trace(PARIS):
        donor = model.model.layers[0].output[0, 7].save()
    with model.edit() as (_, edited):
        edited.model.layers[0].output[:, 7] = donor
    clean, patched = nla.read(model, ROME), nla.read(edited, ROME)
    assert patched.tokens == clean.tokens
    assert patched.explanations[:7] == clean.explanations[:7]
    assert patched.explanations[7:] == paris.explanations[7:]
    assert "About Rome" in clean[-1].explanation
    both = clean.beside(patched, labels=("without", "with"))._repr_html_()
    assert both.startswith("<iframe")
    assert both.count("<") == 2
    assert "without" in both


def test_the_sampling_is_used(model, nla):
    cut = nla.read(model, PARIS, positions=-1, sampling=Sampling(max_new_tokens=3))
    assert "cut off" in " ".join(cut[-1].warnings)


def test_reading_leaves_the_model_and_other_handles_as_they_were(model, nla, residuals):
    waiting = nla.explain(residuals[0])
    nla.read(model, ROME, positions=-1)
    assert not waiting.resolved
    with model.trace(PARIS):
        again = nla.layer(model).output[0].save()
    assert torch.equal(again, residuals)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": 9}, "positions=9: the text has 9 tokens, 0 to 8."),
        ({"positions": [0, -10]}, "positions=[0, -10]: the text has 9 tokens, 0 to 8."),
        ({"positions": []}, "positions=[] names none of the text's 9 tokens."),
        ({"positions": slice(20, None)}, "names none of the text's 9 tokens."),
        ({"positions": "last"}, "positions='last': expected 'all', 'reply' (with generate=N"),
        ({"positions": "reply"}, "positions='reply': expected 'all', 'reply' (with generate=N"),
        ({"positions": 1.5}, "positions=1.5: the text has 9 tokens"),
        ({"generate": 0}, "generate=0: how many tokens may the reply have?"),
        ({"generate": True}, "generate=True: how many tokens may the reply have?"),
    ],
)
def test_options_that_do_not_fit(model, nla, options, message):
    with pytest.raises(NLAError, match=re.escape(message)):
        nla.read(model, PARIS, **options)


def test_what_is_no_prompt_and_no_model(model, nla):
    with pytest.raises(InjectionError, match="is not one prompt"):
        nla.read(model, ["two", "prompts"])
    with pytest.raises(InjectionError, match="Expected an nnsight TransformersModel, got str"):
        nla.read("Qwen/Qwen3-8B", PARIS)


def test_a_vector_that_can_have_no_text(model, nla, monkeypatch):
    explain = nla.explain
    monkeypatch.setattr(nla, "explain", lambda vectors, **rest: explain(vectors * 0, **rest))
    reading = nla.read(model, "The cow", positions=-1)
    assert reading[-1].error == "is zero, it has no direction"
    assert reading[-1].read
    assert reading[-1].explanation is None
    assert str(reading) == "   1 ' cow': [is zero, it has no direction]"
    assert "this vector is zero" in reading._page()


def test_the_table(paris):
    table = paris.to_pandas()
    assert list(table.columns)[:5] == ["position", "token", "part", "explanation", "norm"]
    assert list(table["explanation"]) == list(paris.explanations)
    assert table["warnings"][0] == list(paris[0].warnings)


def test_str_is_for_reading_and_repr_for_knowing(paris):
    assert str(paris).splitlines()[-1].startswith("   8 ' speak': About Paris, the capital of")
    assert repr(paris) == "<Reading of 9 tokens, 9 explained, target block 3>"
    assert len(paris) == 9
    assert [record.token for record in paris[-2:]] == [" Paris", " speak"]


def test_parquet_there_and_back(paris, tmp_path):
    some = Reading((*paris.records, TokenReading(9, "\n", "template")), "t", "v", 24)
    for reading in (paris, some):
        reading.to_parquet(tmp_path / "reading.parquet")
        assert Reading.from_parquet(tmp_path / "reading.parquet") == reading
    table = pd.read_parquet(tmp_path / "reading.parquet")
    assert list(table["token"]) == list(some.tokens)


def test_a_file_that_holds_no_reading(paris, tmp_path):
    import pyarrow.parquet as pq

    path = tmp_path / "other.parquet"
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(NLAError, match=r"holds no reading \(columns: a\)"):
        Reading.from_parquet(path)
    paris.to_parquet(path)
    table = pq.read_table(path)
    note = table.schema.metadata[b"nnsight_nla.reading"].decode()
    later = {b"nnsight_nla.reading": json.dumps({**json.loads(note), "version": 9})}
    pq.write_table(table.replace_schema_metadata(later), path)
    with pytest.raises(NLAError, match="is a reading of version 9, this package reads version 1"):
        Reading.from_parquet(path)
    path.write_text("words")
    with pytest.raises(NLAError, match="is no parquet file"):
        Reading.from_parquet(path)


def test_the_page_is_written_and_the_same_every_time(paris, tmp_path):
    path = paris.to_html(tmp_path / "a.html")
    other = paris.to_html(str(tmp_path / "b.html"))
    assert path.read_bytes() == other.read_bytes()
    assert path == tmp_path / "a.html"
    assert "<title>What a lovely day! People in Paris speak</title>" in path.read_text("utf-8")
    assert str(tiny.paths()["target"]) not in path.read_text("utf-8")


def test_a_notebooks_page_is_in_a_sandbox(paris):
    html = paris._repr_html_()
    assert html.startswith('<iframe title="reading" sandbox="allow-scripts" srcdoc="&lt;!doctype')
    assert html.count("<") == 2


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="readings">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def test_what_the_page_carries(paris):
    shown = embedded(paris._page())
    assert shown["pairs"] is None
    (side,) = shown["readings"]
    assert [token["x"] for token in side["tokens"]] == list(paris.explanations)
    assert [token["t"] for token in side["tokens"]][:2] == ["What", "␣a"]
    infinite = Reading((replace(paris[0], norm=float("inf")),), "t", "v", 3)
    assert "norm" not in embedded(infinite._page())["readings"][0]["tokens"][0]


def test_two_texts_are_laid_opposite_each_other(paris):
    fewer = Reading(paris.records[:3] + paris.records[5:], "t", "v", 3)
    assert embedded(paris._page(fewer))["pairs"] == [
        *([i, i] for i in range(3)), *([i + 2, i] for i in range(3, 7)),
    ]  # fmt: skip
    assert embedded(paris._page(paris))["pairs"] == [[i, i] for i in range(9)]


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_no_text_gets_out_of_the_data(token, text, note):
    record = TokenReading(0, token, "prompt", explanation=text, norm=1.0, warnings=(note,))
    page = Reading((record,), "t", "v", 3)._page()
    assert page.count("<script") == page.count("</script>") == 2
    assert page.count("<noscript>") == page.count("</noscript>") == 1
    shown = embedded(page)["readings"][0]["tokens"][0]
    if all(char.isprintable() for char in text):
        assert shown["x"] == text
    assert "\x00" not in page
    assert page.encode("utf-8")


def test_the_glyphs_show_what_hides():
    assert view.glyphs.visible("a\u202e\ud800\u2028 b") == "a\\u202e\\ud800\\u2028␣b"
    assert view.glyphs.readable("a\r\n\u200d", 10) == "a\\u000d\n\u200d"
