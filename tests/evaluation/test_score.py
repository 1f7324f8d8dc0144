"""Scores: by hand with a made-up reconstructor, on the pair, and every failure's words."""

import math

import pytest
import torch

from nnsight_nla import Baseline, InjectionError, ReconstructionError, Sampling
from nnsight_nla.evaluation.score import Score, score

HALF = Baseline(0.5, "by hand", 10)


def by_hand(texts):
    """Text ``"1 0"`` is the vector (1, 0)."""
    return torch.tensor([[float(part) for part in text.split()] for text in texts])


def scored(texts, vectors, reasons=None, baseline=HALF, failures="raise") -> Score:
    return score(
        by_hand, texts, torch.tensor(vectors), reasons or {}, baseline=baseline, failures=failures
    )


def test_by_hand():
    found = scored(["1 0", "0 3", "1 1"], [[2.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    root = math.sqrt(0.5)
    assert found.cosine.tolist() == pytest.approx([1, 0, root])
    assert found.mse.tolist() == pytest.approx([0, 2, 2 * (1 - root)], abs=1e-6)
    assert found.fve.tolist() == pytest.approx([1, -3, 1 - 4 * (1 - root)], abs=1e-6)
    assert found.mean == pytest.approx(
        {"cosine": (1 + root) / 3, "mse": 4 / 3 - 2 * root / 3, "fve": -5 / 3 + 4 * root / 3}
    )
    assert str(found).startswith(
        "cosine 0.569, MSE 0.862, FVE -0.724 (denominator 0.5000: the variance of"
    )
    assert str(found).endswith("by hand); 3 rows")


def test_without_a_baseline_there_is_no_fve():
    found = scored(["1 0"], [[2.0, 0.0]], baseline=None)
    assert found.fve is None
    assert "fve" not in found.mean
    assert str(found) == "cosine 1.000, MSE 0.000; 1 row"
    assert found.to_dict()["rows"][0]["fve"] is None
    assert found.to_dict()["baseline"] is None


@pytest.mark.parametrize(
    ("failures", "cosines", "mean", "words"),
    [
        ("zero", [1, 0], 0.5, "1 without an explanation (counted as a cosine of 0)"),
        ("skip", [1, None], 1.0, "1 without an explanation (left out)"),
        ("keep", [1, 1], 1.0, "1 without an explanation (scored as they are)"),
    ],
)
def test_failed_extractions_count_as_the_caller_says(failures, cosines, mean, words):
    texts, vectors = ["1 0", "1 0"], [[1.0, 0.0], [1.0, 0.0]]
    found = scored(texts, vectors, {1: "the reply has no closing tag"}, failures=failures)
    assert [row["reconstruction_cosine"] for row in found.to_dict()["rows"]] == pytest.approx(
        cosines
    )
    assert found.mean["cosine"] == pytest.approx(mean)
    assert found.failed == ((1,),)
    assert words in str(found)
    table = found.to_pandas()
    assert table["failed"].tolist() == [False, True]
    assert "nan" not in table.to_string().lower()
    assert table["reconstruction_cosine"].isna().sum() == cosines.count(None)


def test_by_default_a_failed_row_raises_and_says_what_to_type():
    with pytest.raises(ReconstructionError, match=r"1 of 2 rows.*\(1,\): no tag.*'zero'.*'skip'"):
        scored(["1 0", "x"], [[1.0, 0.0], [1.0, 0.0]], {1: "no tag"})
    with pytest.raises(ReconstructionError, match=r"row \(0,\): this vector is zero"):
        scored([None], [[0.0, 0.0]], {0: "this vector is zero"}, failures="keep")
    with pytest.raises(ReconstructionError, match="'ignore': expected one of raise, zero, skip"):
        scored(["1 0"], [[1.0, 0.0]], failures="ignore")


def test_all_left_out_is_no_mean_and_no_nan():
    found = scored([None], [[0.0, 0.0]], {0: "this vector is zero"}, failures="skip")
    assert str(found) == "1 row, 1 without an explanation (left out)"
    assert found.to_dict()["mean"] is None
    with pytest.raises(ReconstructionError, match="no row to average"):
        _ = found.mean
    assert "nan" not in found.to_pandas().to_string().lower()


def test_on_the_pair(nla, residuals):
    thought = nla.explain(residuals.reshape(3, 3, 128)[1:])
    found = nla.score(thought)
    assert found.shape == (2, 3)
    expected = torch.cosine_similarity(nla.reconstruct(thought.text), thought.vectors, dim=-1)
    torch.testing.assert_close(found.cosine, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.mse, 2 * (1 - expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        found.fve, 1 - found.mse / nla.checkpoint.baseline.value, atol=1e-5, rtol=1e-5
    )
    assert found.baseline is nla.checkpoint.baseline
    assert nla.score(thought, baseline=HALF).baseline is HALF
    # Against other vectors it is worse, and a scalar handle gives a scalar score.
    other = nla.score(thought, thought.vectors.flip(0, 1))
    assert other.mean["cosine"] < found.mean["cosine"] - 0.3
    one = nla.score(thought[0, 1])
    assert one.shape == ()
    assert one.cosine.item() == pytest.approx(found.cosine[0, 1].item(), abs=1e-5)
    assert one.to_dict()["rows"][0]["index"] == []
    assert found.to_pandas()["index"].tolist()[-1] == [1, 2]


def test_texts_with_their_vectors(nla, residuals):
    thought = nla.explain(residuals[-2:])
    assert nla.score(thought.text, residuals[-2:]).cosine.tolist() == pytest.approx(
        nla.score(thought).cosine.tolist(), abs=1e-5
    )
    assert nla.score([], residuals[:0]).to_pandas().empty


@pytest.mark.parametrize(
    ("text", "vectors", "error", "message"),
    [
        ("a text", None, ReconstructionError, "A text has no vector of its own"),
        ("a text", torch.ones(64), InjectionError, r"\[64\]"),
        ("a text", torch.ones(2, 128), ReconstructionError, r"shape \(\), the vectors \(2, 128\)"),
        (
            ["a", "b"],
            torch.zeros(2, 128),
            ReconstructionError,
            "2 of 2 vectors have no direction to compare with: vector 0 is zero",
        ),
        ("a", torch.full((128,), torch.nan), ReconstructionError, "vector 0 has NaN"),
        (["a", " "], torch.ones(2, 128), ReconstructionError, r"\(1,\): the text is empty"),
    ],
)
def test_what_cannot_be_scored(nla, text, vectors, error, message):
    with pytest.raises(error, match=message):
        nla.score(text, vectors)


def test_a_handle_against_vectors_of_another_shape(nla, residuals):
    thought = nla.explain(residuals[-2:])
    with pytest.raises(ReconstructionError, match=r"\(2,\), the vectors \(3, 128\)"):
        nla.score(thought, residuals[-3:])


def test_a_zero_vector_and_a_truncated_reply(nla, residuals):
    vectors = torch.stack([residuals[-1], torch.zeros(128)])
    thought = nla.explain(vectors)
    with pytest.raises(ReconstructionError, match=r"\(1,\): this vector is zero"):
        nla.score(thought)
    found = nla.score(thought, failures="zero")
    assert found.cosine[1] == 0
    assert found.failed == ((1,),)
    cut = nla.explain(residuals[-1], sampling=Sampling(max_new_tokens=14))
    with pytest.raises(ReconstructionError, match="no closing </explanation> tag"):
        nla.score(cut)
    assert nla.score(cut, failures="keep").mean["cosine"] < 0.9


def test_a_baseline_that_is_none(nla, residuals):
    with pytest.raises(ReconstructionError, match="expected a Baseline"):
        nla.score(nla.explain(residuals[-1]), baseline=0.7)
