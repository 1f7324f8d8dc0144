"""Explanations that end at their first line, or after n tokens: while generating, and in scores."""

from typing import Any

import pytest
import torch

from nnsight_nla import NLA, ReconstructionError, Sampling, VerbalizationError, tiny
from nnsight_nla.evaluation.length import cut
from nnsight_nla.explanation.handle import Explanation
from nnsight_nla.verbalize.decoding import Closing


@pytest.fixture(params=["fast", "generate"])
def engine(request, nla):
    before = nla._verbalizer.engine
    nla._verbalizer.engine = request.param
    yield request.param
    nla._verbalizer.engine = before


def test_generation_stops_where_the_full_text_would_be_cut(nla, residuals, engine):
    whole = nla.explain(residuals)
    for upto in ("line", 5):
        thought = nla.explain(residuals, sampling=Sampling(upto=upto))
        texts = [cut(nla.av.tokenizer, text, upto) for text in whole.text]
        assert thought.text == [text.strip() for text in texts]
        assert set(thought.finish) == {"cut"}
        new = [thought.capture.replies[row, 0].new_tokens for row in thought.rows]
        full = [whole.capture.replies[row, 0].new_tokens for row in whole.rows]
        assert all(one < other for one, other in zip(new, full, strict=True))
        assert not any("closing" in each for row in thought.warnings for each in row)
        assert all(each.reason is None for each in thought.trust)


def test_a_score_of_the_beginning_is_the_score_of_the_short_texts(nla, residuals, tmp_path):
    whole = nla.explain(residuals)
    short = nla.explain(residuals, sampling=Sampling(upto="line"))
    line, full = nla.score(whole, upto="line"), nla.score(whole)
    torch.testing.assert_close(line.cosine, nla.score(short).cosine)
    assert line.mean["fve"] < full.mean["fve"]
    assert line.mean["fve"] > nla.score(whole, upto=2).mean["fve"]
    torch.testing.assert_close(nla.score(whole, upto=10_000).cosine, full.cosine)
    short.to_parquet(tmp_path / "short.parquet")
    assert Explanation.from_parquet(tmp_path / "short.parquet").finish == short.finish


def test_a_reply_that_ends_before_that_is_whole(nla, residuals):
    long = nla.explain(residuals[:2], sampling=Sampling(upto=10_000))
    assert long.finish == ["tag", "tag"]
    assert long.text == nla.explain(residuals[:2]).text
    few = nla.explain(residuals[0], sampling=Sampling(upto=10_000, max_new_tokens=6))
    assert few.finish == "length"


def test_a_verbalizer_without_tags_has_whole_explanations(nla):
    """One that writes lines for ever, and never a tag: the first line counts, with no complaint."""
    verbalizer, line = nla._verbalizer, Sampling(upto="line")
    ids = nla.av.tokenizer.encode("About Rome.\nAbout Paris.\n", add_special_tokens=False)
    ends = next(n for n in range(1, len(ids) + 1) if verbalizer._ending(line)(ids[:n]))
    assert "Paris" not in nla.av.tokenizer.decode(ids[:ends])
    for kept, end in ((ids[:ends], None), (ids[: ends - 1], 1)):
        reply = verbalizer._reply(kept, (1.0, 1.0, 1.0), end=end, sampling=line)
        assert (reply.text, reply.finish, reply.problem) == ("About Rome.", "cut", None)
    plain = verbalizer._reply(ids, (1.0, 1.0, 1.0), end=None, sampling=Sampling())
    assert plain.problem == "the reply has no <explanation> tag"
    empty = verbalizer._reply([], (1.0, 1.0, 1.0), end=1, sampling=line)
    assert empty.problem == "the explanation is empty"


@pytest.mark.parametrize("opened", ["", "<explanation>\n"])
@pytest.mark.parametrize("tagged", [True, False])
def test_the_tag_is_not_counted(nla, opened, tagged):
    tokenizer: Any = nla.av.tokenizer
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    body = encode("About Rome, the capital of Italy.")
    ids = [*(encode("<explanation>\n") if tagged and not opened else []), *body]
    closing = Closing(tokenizer, "</explanation>", opening="<explanation>", opened=opened, upto=3)
    ends = next(n for n in range(1, len(ids) + 1) if closing(ids[:n]))
    assert ends == len(ids) - len(body) + 3


@pytest.mark.parametrize("wrong", [0, -1, "lines", 2.5, True])
def test_what_is_no_length_is_refused(nla, residuals, wrong):
    with pytest.raises(VerbalizationError, match=r"Sampling\(upto=.*'line', or a number"):
        Sampling(upto=wrong)
    with pytest.raises(ReconstructionError, match=r"upto has .*expected 'line', 'whole', or"):
        nla.score("About Rome.", residuals[0], upto=wrong)


def test_a_text_of_which_nothing_is_left_fails_as_others_do(nla, residuals):
    assert nla.score(["About Rome.", " "], residuals[:2], upto="line", failures="zero").failed == (
        (1,),
    )
    assert isinstance(NLA(tiny.paths()["av"], sampling=Sampling(upto="line")).sampling, Sampling)
