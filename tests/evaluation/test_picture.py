"""Scores by source, and reliability curves, as figures."""

import json
import re

import pytest
import torch

from nnsight_nla import Baseline, ReconstructionError, tiny
from nnsight_nla.evaluation import plot_reliability, plot_scores
from nnsight_nla.evaluation.reliability import reliability
from nnsight_nla.evaluation.score import Score
from nnsight_nla.view.figure import TEMPLATE

BASELINE = Baseline(0.8, "these rows", n=9)


def by_hand(cosines, baseline=BASELINE):
    cosine = torch.tensor(cosines)
    mse = 2 * (1 - cosine)
    return Score(cosine, mse, None, baseline, "skip", ())


def test_a_column_for_each_source_with_its_mean():
    scores = {"its own": by_hand([[0.9, 0.7]]), "random": by_hand([0.1, float("nan"), 0.3])}
    figure = plot_scores(scores, texts={"random": ["<b>a</b>", None, "c\nd"]})
    own, own_mean, random, random_mean = figure.data
    assert list(own.y) == pytest.approx([0.9, 0.7])
    assert list(own_mean.y) == pytest.approx([0.8, 0.8])
    assert all(-0.36 < x < 0.36 for x in own.x)
    assert random.y[1] is None
    assert list(random_mean.y) == pytest.approx([0.2, 0.2])
    assert all(0.64 < x < 1.36 for x in random.x)
    assert list(random.customdata) == ["&lt;b&gt;a&lt;/b&gt;", "", "c<br>d"]
    assert own.customdata is None
    assert list(figure.layout.xaxis.ticktext) == ["its own", "random"]
    assert figure.layout.template.layout.font.color == TEMPLATE["layout"]["font"]["color"]
    json.loads(figure.to_json())


def test_the_line_is_where_the_fve_is_0():
    figure = plot_scores({"a": by_hand([0.5])})
    (line,) = figure.layout.shapes
    assert line.y0 == line.y1 == pytest.approx(0.6)
    assert BASELINE.fve(torch.tensor(2 * (1 - line.y0))).item() == pytest.approx(0, abs=1e-6)
    title = " ".join(re.sub("<.*?>", " ", figure.layout.title.text).split())
    assert f"dashed: FVE 0 ({BASELINE.in_words()})" in title
    assert not plot_scores({"a": by_hand([0.5])}, baselines=[]).layout.shapes
    assert not plot_scores({"a": by_hand([0.5], None)}).layout.shapes
    assert len(plot_scores({"a": by_hand([0.5]), "b": by_hand([0.1])}).layout.shapes) == 1


def test_names_of_columns_are_level_only_where_a_phone_has_room():
    few = plot_scores({"its own text, at length": by_hand([0.5]), "b": by_hand([0.5])})
    assert list(few.layout.xaxis.ticktext) == ["its own text,<br>at length", "b"]
    assert few.layout.xaxis.tickangle == 0
    names = [f"the text of {each}" for each in ("itself", "<nothing>", "another", "noise")]
    many = plot_scores({name: by_hand([0.5]) for name in names})
    assert list(many.layout.xaxis.ticktext)[1] == "the text of &lt;nothing&gt;"
    assert many.layout.xaxis.tickangle == -40


def test_shades_share_a_scale_and_the_others_are_grey():
    scores = {name: by_hand([0.5, 0.4]) for name in "abc"}
    figure = plot_scores(scores, shades={"a": [0, 3], "c": [6, 1]}, shade="right")
    a, _, b, _, c, _ = (trace.marker for trace in figure.data)
    assert [(each.cmin, each.cmax) for each in (a, c)] == [(0, 6), (0, 6)]
    assert (list(a.color), list(c.color)) == ([0, 3], [6, 1])
    assert b.color == "#7a7a7a"
    assert a.colorbar.title.text == "right"
    assert c.colorbar.title.text is None


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        ({}, {}, "plot_scores({}): expected scores by the name of their source."),
        (
            {"a": by_hand([0.5])},
            {"texts": {"b": ["x"]}},
            "texts has 'b', which has no score: expected some of 'a'.",
        ),
        (
            {"a": by_hand([0.5])},
            {"texts": {"a": ["x", "y"]}},
            "texts['a'] has 2 values, and the score 1 rows: expected one for each.",
        ),
        (
            {"a": by_hand([0.5])},
            {"shades": {"a": [1, 2]}},
            "shades['a'] has 2 values, and the score 1 rows: expected one for each.",
        ),
    ],
)
def test_what_does_not_fit_is_named(scores, options, message):
    with pytest.raises(ReconstructionError) as caught:
        plot_scores(scores, **options)
    assert str(caught.value) == message


def test_scores_of_several_samples():
    """Texts may have any shape that the score has."""
    score = by_hand([[0.1, 0.2], [0.3, 0.4]])
    figure = plot_scores({"a": score}, texts={"a": [["1", "2"], ["3", "4"]]})
    assert list(figure.data[0].customdata) == ["1", "2", "3", "4"]


def test_a_reliability_curve_from_records_and_from_plain_data():
    curve = reliability([0.2] * 10 + [0.9] * 10, [True] * 2 + [False] * 8 + [True] * 10, bins=2)
    for given in (curve, curve.to_dict()):
        first, diagonal = plot_reliability({"next": given}).data
        assert list(first.x) == pytest.approx([0.2, 0.9])
        assert list(first.y) == pytest.approx([0.2, 1.0])
        assert first.name == "next: error 0.050"
        assert (list(diagonal.x), list(diagonal.y)) == ([0, 1], [0, 1])


def test_the_shipped_curves_are_drawn_in_the_order_that_is_asked_for():
    tested = tiny.figures()["truth"]["calibration"]["tested"]
    names = list(tested)[::-1][:2]
    figure = plot_reliability(tested, only=names)
    assert [trace.name.split(":")[0] for trace in figure.data] == [*names, "perfect"]
    assert len(plot_reliability(tested).data) == len(tested) + 1


def test_a_curve_that_is_missing_or_something_else_is_named():
    with pytest.raises(ReconstructionError, match=r"only=\['b'\]: there is no 'b'. Curves: 'a'"):
        plot_reliability({"a": {"bins": [], "error": 0.0}}, only=["b"])
    with pytest.raises(ReconstructionError, match=r"curves\['a'\] is 3, expected a Reliability"):
        plot_reliability({"a": 3})
