"""A sweep as a plotly figure and as HTML."""

import json
import re

import pytest
import torch

from nnsight_nla.experiments import ExperimentError, logit_difference, patch, steer
from tests.experiments.test_sweep import by_hand, dosed, heads, noisy

CLEAN = "What a lovely day! People in Paris speak"
CORRUPT = "What a lovely day! People in Rome speak"


def test_layers_upwards_positions_to_the_right_explanations_on_hover():
    figure = by_hand().plot()
    (trace,) = figure.data
    assert list(trace.y) == ["0", "1", "2", "4"]
    assert list(trace.x) == ["1 ␣b", "2 ␣c", "3 &lt;i&gt;"]
    assert list(trace.z[0][:2]) == [1.0, 0.0]
    assert trace.z[2][2] is None
    assert [line[0] for line in trace.text] == ["●", "○", "", ""]
    blank = {(each.x, each.y): each.text for each in figure.layout.annotations}
    shown = trace.text[3][2] or blank[trace.x[2], "4"]
    assert shown == "–"
    assert "two of them" in trace.customdata[0][0]
    assert "one of them" in trace.customdata[0][0]
    assert "downstream of the verbalized layer" in trace.customdata[3][2]
    assert "this vector is zero" in trace.customdata[2][2]
    assert (trace.zmin, trace.zmax) == (-1.0, 1.0)
    assert trace.colorscale[1][0] == 0.5, "the faint grey is at zero"
    assert trace.colorscale[1][1].endswith(",0.13)")


def test_rounding_errors_neither_order_the_largest_effects_nor_have_a_sign():
    said = [noisy(seed)._repr_html_() for seed in range(3)]
    assert said[0] == said[1] == said[2]
    assert "-0.000" not in said[0]
    assert said[0].index("block 1, ␣c@2") < said[0].index("block 0, A@0")
    assert said[0].index("block 0, A@0") < said[0].index("block 0, ␣b@1")


def test_the_words_that_changed_as_colour():
    figure = by_hand().plot(value="change")
    (trace,) = figure.data
    assert trace.z[0][0] == pytest.approx(1 / 3)
    assert (trace.z[3][2], trace.text[3][2]) == (None, "")
    assert (trace.zmin, trace.zmax) == (0, pytest.approx(1 / 3)), "the scale ends at the largest"
    blank = {(each.x, each.y): each.text for each in figure.layout.annotations}
    assert blank[trace.x[2], "4"] == "–", "a mark on the page itself has the page's ink"
    with pytest.raises(ExperimentError, match="'effect' or 'change'"):
        by_hand().plot(value="cosine")


def test_doses_and_controls_stand_beside_each_other(model, nla):
    metric = logit_difference(" French", " Italian")
    sweep = steer(
        model, nla, CLEAN, layers=[1, 3], positions=-1, metric=metric,
        vector=torch.ones(128), doses=[0.5, 2],
    )  # fmt: skip
    (trace,) = sweep.plot().data
    assert list(trace.x) == [
        "8 ␣speak × 0.5", "8 ␣speak × 2", "8 ␣speak × 0.5 (random 0)",
        "8 ␣speak × 2 (random 0)",
    ]  # fmt: skip
    assert all(value is not None for line in trace.z for value in line)

    random, line, *others = sweep.plot(form="curves").data
    assert (line.name, random.name) == (
        "block 1, ␣speak@8: steer", "block 1, ␣speak@8: a random direction",
    )  # fmt: skip
    assert [each.name for each in others] == [
        "block 3, ␣speak@8: a random direction", "block 3, ␣speak@8: steer",
    ]  # fmt: skip
    rows = {(row["layer"], row["kind"], row["dose"]): row for row in sweep.rows()}
    for drawn, (layer, kind) in zip(
        (random, line, *others),
        [(1, "random 0"), (1, "steer"), (3, "random 0"), (3, "steer")],
        strict=True,
    ):
        assert list(drawn.x) == [0.5, 2]
        assert list(drawn.y) == [rows[layer, kind, dose]["effect"] for dose in (0.5, 2)]
        assert (drawn.line.dash == "dot") == (kind == "random 0")
    changed = [rows[1, "steer", dose]["text_changed"] for dose in (0.5, 2)]
    shown = ["circle" if each else "circle-open" for each in changed]
    assert list(line.marker.symbol) == shown


@pytest.mark.parametrize("value", ["effect", "change"])
def test_random_directions_are_one_band_from_the_smallest_to_the_largest(value):
    low, high, line = dosed().plot(form="curves", value=value).data
    assert low.name == high.name == "block 1, ␣c@2: 3 random directions, min to max"
    assert (low.showlegend, high.showlegend) == (True, False)
    assert (low.fill, high.fill) == ("none", "tonexty")
    assert low.fillcolor.startswith("rgba(")
    assert list(low.x) == list(high.x) == list(line.x) == [-1, 2]
    if value == "effect":
        assert (list(low.y), list(high.y)) == ([-0.5, -3.0], [0.25, 4.0])
        assert "random 2 × 2" in high.customdata[1], "an edge shows the texts of its direction"
    assert line.name == "block 1, ␣c@2: steer"


def test_heads_are_to_the_right_and_blocks_upwards():
    (trace,) = heads([3]).plot().data
    assert (list(trace.y), list(trace.x)) == (["0", "1"], ["0", "1", "2"])
    assert [list(line) for line in trace.z] == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
    figure = heads([3]).plot()
    assert figure.layout.xaxis.title.text == "head, at 3 &lt;i&gt;"
    assert figure.layout.xaxis.tickangle == 0
    (trace,) = heads([2, 3]).plot(value="change").data
    assert list(trace.x) == [
        f"{place}, head {head}" for place in ("2 ␣c", "3 &lt;i&gt;") for head in range(3)
    ]


@pytest.mark.parametrize("value", ["cosine", "", None, 3])
@pytest.mark.parametrize("form", ["grid", "curves"])
def test_another_value_is_refused(form, value, tmp_path):
    with pytest.raises(ExperimentError, match=r"plot\(value=.*\): expected 'effect' or 'change'"):
        dosed().plot(form=form, value=value)
    with pytest.raises(ExperimentError, match="expected 'effect' or 'change'"):
        dosed().to_html(tmp_path / "sweep.html", value=value)
    assert not (tmp_path / "sweep.html").exists()


def test_curves_need_doses_and_forms_are_two():
    with pytest.raises(ExperimentError, match="no doses to draw curves of"):
        by_hand().plot(form="curves")
    with pytest.raises(ExperimentError, match="'grid' or 'curves'"):
        by_hand().plot(form="bars")


def test_the_page_escapes_and_fetches_nothing():
    page = by_hand()._repr_html_()
    assert "a &lt;model&gt;" in page
    assert "<i>" not in page
    assert not re.search(r"https?://|<script", page)
    assert "two" in page
    assert "downstream of the verbalized layer" in page


def test_of_a_real_sweep(model, nla):
    metric = logit_difference(" French", " Italian")
    sweep = patch(model, nla, CLEAN, CORRUPT, layers=[0, 4], positions=[7, 8], metric=metric)
    page = sweep._repr_html_()
    assert "Rome" in page
    assert "Paris" in page
    assert "2 largest" not in page
    assert json.loads(sweep.plot().to_json())["data"][0]["type"] == "heatmap"
