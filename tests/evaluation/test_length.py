"""Explanations cut to several lengths: the curve ends at the score of the whole text."""

import json

import pytest
import torch

from nnsight_nla import Baseline
from nnsight_nla.errors import ReconstructionError
from nnsight_nla.evaluation import over_length
from nnsight_nla.evaluation.grounding.rows import GroundedRow
from nnsight_nla.evaluation.length import OverLength, Point
from tests.helpers.tiny_rows import tiny_rows


@pytest.fixture(scope="module")
def source(pair):
    return tiny_rows(pair[0], documents=16, per_document=3, seed=4)


@pytest.fixture(scope="module")
def curve(pair, source):
    return over_length(pair[1], pair[1].explain(source.vectors), rows=source.rows)


def test_it_ends_at_the_score_of_the_whole_text(nla, source, curve):
    whole = nla.score(nla.explain(source.vectors), failures="zero").mean
    assert curve.points["whole"].cosine == pytest.approx(whole["cosine"], abs=1e-6)
    assert curve.points["whole"].fve == pytest.approx(whole["fve"], abs=1e-6)
    assert (curve.n, curve.baseline) == (48, nla.baseline)
    texts = nla.explain(source.vectors).text
    lengths = [len(nla.av.tokenizer(each, add_special_tokens=False)["input_ids"]) for each in texts]
    assert curve.points["whole"].tokens == pytest.approx(sum(lengths) / len(lengths))
    assert max(map(int, set(curve.points) - {"line", "whole"})) < max(lengths)


def test_more_text_carries_more_of_the_vector_and_more_truth(curve):
    cut = [point for name, point in curve.points.items() if name != "line"]
    assert [each.tokens for each in cut] == sorted(each.tokens for each in cut)
    assert cut[0].cosine < cut[-1].cosine - 0.2
    for statement in ("current", "next", "stage"):
        assert cut[0].right[statement] < 0.3 < 0.7 < cut[-1].right[statement]


def test_the_first_line_says_what_it_is_about_and_no_more(curve):
    right = curve.points["line"].right
    assert right["subject"] > 0.9
    assert right["attribute"] > 0.9
    assert right["current"] == right["next"] == right["stage"] == 0


def test_texts_are_cut_where_asked(nla, monkeypatch):
    seen: list[list[str]] = []
    original = nla.reconstruct
    monkeypatch.setattr(nla, "reconstruct", lambda texts: seen.append(texts) or original(texts))
    text = "\n\nAbout Paris, the capital of France;\n\nStating the food.\nAfter: eat."
    over_length(nla, [text], torch.ones(1, 128), upto=("line", 5, "whole"))
    # The first line, not the first paragraph or the empty line before it.
    assert seen[0] == ["About Paris, the capital of France;"]
    assert text.startswith(seen[1][0])
    assert len(nla.av.tokenizer(seen[1][0], add_special_tokens=False)["input_ids"]) == 5
    assert seen[2] == [text]


def test_texts_without_labels_and_with_odd_ones(nla, source):
    vectors = source.vectors[:4]
    rows = [GroundedRow("a", "b"), GroundedRow("a", "", label="odd"), *source.rows[2:4]]
    texts = ["", " \n", "é\u2028😀" * 50, source.rows[3].label]
    found = over_length(nla, texts, vectors, rows=rows, upto=("line", 1, "whole"))
    assert found.points["whole"].right["subject"] == 0.5
    assert found.points["whole"].cosine > 0.1
    assert over_length(nla, texts, vectors, upto=("whole",)).points["whole"].right == {}
    found = over_length(
        nla, texts, vectors, rows=rows, upto=("whole",),
        truth=lambda text, label: {"a": True} | ({"b": False} if label == "odd" else {}),
    )  # fmt: skip
    assert found.points["whole"].right == {"a": 1.0, "b": 0.0}


def test_a_malformed_reply_counts_as_zero(nla, source):
    from nnsight_nla import Sampling

    cut = nla.explain(source.vectors[:2], sampling=Sampling(max_new_tokens=12))
    found = over_length(nla, cut, rows=source.rows[:2], upto=("line", "whole"))
    for point in found.points.values():
        assert (point.cosine, point.tokens, set(point.right.values())) == (0, 0, {0.0})


def test_with_another_baseline_and_with_none(nla, source, monkeypatch):
    texts = [row.label for row in source.rows[:3]]
    base = Baseline(0.5, "by hand")
    found = over_length(nla, texts, source.vectors[:3], upto=("whole",), baseline=base)
    point = found.points["whole"]
    assert point.fve == pytest.approx(1 - 2 * (1 - point.cosine) / 0.5, abs=1e-5)
    assert found.to_dict()["baseline"]["name"] == "by hand"


@pytest.mark.parametrize("upto", ["words", 0, -1, 2.5, True, None])
def test_other_lengths_are_refused(nla, upto):
    with pytest.raises(ReconstructionError, match=r"upto has .*: expected 'line', 'whole', or num"):
        over_length(nla, ["a"], torch.ones(1, 128), upto=("line", upto))


def test_what_does_not_fit_is_refused(nla, source):
    with pytest.raises(ReconstructionError, match="Got 1 rows for 2 explanations"):
        over_length(nla, ["a", "b"], source.vectors[:2], rows=source.rows[:1])
    with pytest.raises(ReconstructionError, match="no direction"):
        over_length(nla, ["a"], torch.full((1, 128), torch.nan))
    with pytest.raises(ReconstructionError, match="no row to average"):
        over_length(nla, [], torch.zeros(0, 128))


def test_the_picture_has_a_line_for_each_figure(curve):
    assert json.loads(json.dumps(curve.to_dict(), allow_nan=False))["n"] == 48
    figure = curve.plot()
    names = [trace.name for trace in figure.data]
    assert names[0] == "FVE"
    assert {"subject is right", "next is right"} < set(names)
    assert list(figure.data[0].x) == sorted(figure.data[0].x)
    assert figure.data[0].y[-1] == curve.points["whole"].fve
    assert figure.layout.annotations[0].text == "first line"


def test_pictures_of_few_points():
    one = OverLength({"line": Point(3, 0.5, None, {"a": 1.0})}, 1, None)
    assert [trace.name for trace in one.plot().data] == ["cosine"]
    two = OverLength({"4": Point(4, 0.5, None, {"a": 1.0}), "8": Point(8, 0.6, None, {})}, 1, None)
    assert list(two.plot().data[1].y) == [1.0, None]
    assert OverLength({}, 0, None).plot().layout.annotations == ()
