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


def test_several_lengths_give_the_curve(nla, residuals):
    whole = nla.explain(residuals)
    lengths = ["line", 2, 8, 10_000, "whole"]
    curve = nla.score(whole, upto=lengths)
    assert list(curve.points) == list(map(str, lengths))
    for each in lengths:
        one, point = nla.score(whole, upto=each).mean, curve.points[str(each)]
        assert (point.cosine, point.fve) == (one["cosine"], one["fve"])
    assert curve.points["2"].fve < curve.points["8"].fve < curve.points["whole"].fve
    assert (curve.points["2"].tokens, curve.n, curve.baseline) == (2, len(residuals), nla.baseline)
    assert curve.points["10000"] == curve.points["whole"]
    assert str(curve).splitlines()[1].startswith("     2     2.0 tokens  cosine 0.")


def test_the_curve_counts_replies_without_tags_and_what_fails(nla, residuals):
    cut = nla.explain(residuals[:2], sampling=Sampling(max_new_tokens=12))
    assert set(cut.finish) == {"length"}
    assert nla.score(cut, upto=[8]).points["8"].cosine == nla.score(cut, upto=8).mean["cosine"]
    texts, vectors = ["About Rome.", " "], residuals[:2]
    zero = nla.score(texts, vectors, upto=("line",), failures="zero").points["line"]
    skip = nla.score(texts, vectors, upto=("line",), failures="skip").points["line"]
    assert (2 * zero.cosine, 2 * zero.tokens) == pytest.approx((skip.cosine, skip.tokens))
    with pytest.raises(ReconstructionError, match="have no explanation to score; row"):
        nla.score(texts, vectors, upto=["line", 2])
    with pytest.raises(ReconstructionError, match=r"upto is empty: expected lengths, such as"):
        nla.score(texts[:1], vectors[:1], upto=[])
    with pytest.raises(ReconstructionError, match=r"upto has 0: expected 'line'"):
        nla.score(texts[:1], vectors[:1], upto=["line", 0])


def test_a_reading_can_end_there(nla, model):
    short = nla.read(model, "The cow lives", upto=3, sampling=Sampling(max_new_tokens=9))
    same = nla.read(model, "The cow lives", sampling=Sampling(upto=3, max_new_tokens=9))
    assert [each.explanation for each in short] == [each.explanation for each in same]
    line = nla.read(model, "The cow lives", positions=-1, upto="line")
    whole = nla.read(model, "The cow lives", positions=-1)
    assert whole[-1].explanation.startswith(line[-1].explanation)
    assert len(line[-1].explanation) < len(whole[-1].explanation)
    with pytest.raises(VerbalizationError, match=r"Sampling\(upto='word'\)"):
        nla.read(model, "The cow lives", upto="word")


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
