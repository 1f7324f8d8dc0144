"""The record of a trust label: its margin, its grade and its line."""

import json

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nnsight_nla import Baseline, Trust
from nnsight_nla.core.trust import PARTIAL, STRONG, Grounded, grade, margin


@pytest.mark.parametrize(
    ("cosine", "controls", "expected"),
    [
        (1.0, (0.2, 0.1), 1.0),
        (0.6, (0.2, 0.1), 0.5),
        (0.6, (-0.5, None), 0.6),
        (0.99, (0.95, 0.98), 0.5),
        (0.1, (0.5,), -0.8),
        (1.0, (1.0,), 0.0),
    ],
)
def test_margin(cosine, controls, expected):
    assert margin(cosine, *controls) == pytest.approx(expected)


@pytest.mark.parametrize("controls", [(), (None, None), (0.1, float("nan")), (float("inf"),)])
def test_without_a_finite_control_there_is_no_margin(controls):
    assert margin(0.9, *controls) is None


cosines = st.floats(-1, 1)


@given(cosines, cosines, st.lists(cosines | st.none(), max_size=4), cosines)
def test_a_further_control_never_raises_the_margin(cosine, first, others, more):
    controls = [first, *others]
    assert margin(cosine, *controls, more) <= margin(cosine, *controls) + 1e-9
    assert margin(cosine, *controls, None) == margin(cosine, *controls)


@given(cosines, cosines, cosines)
def test_a_higher_cosine_never_lowers_the_margin_or_the_grade(one, other, control):
    low, high = sorted([margin(min(one, other), control), margin(max(one, other), control)])
    assert low == margin(min(one, other), control)
    order = ("weak", "partial", "strong")
    assert order.index(grade(low)) <= order.index(grade(high))


def test_grades():
    assert [grade(m) for m in (1.0, STRONG, STRONG - 1e-6, PARTIAL, PARTIAL - 1e-6, -2.0)] == [
        "strong",
        "strong",
        "partial",
        "partial",
        "weak",
        "weak",
    ]
    assert grade(0.99, agreement=0.4) == "weak"
    assert grade(0.3, agreement=0.99) == "weak"


def test_the_line():
    label = Trust(
        "strong", 0.953, 0.9, Baseline(0.965, "x"), 0.1, None, 0.02, 0.95, 0.88, ("early", "quotes")
    )
    assert label.line == (
        "reconstruction: strong (cosine 0.95; FVE 0.90 (denominator 0.965: the variance: x); "
        "against other vectors 0.10, random 0.02; samples agree 0.88; 2 warnings)"
    )
    alone = Trust("weak", 0.1, None, None, None, 0.2, None)
    assert alone.line == "reconstruction: weak (cosine 0.10; against null 0.20, no other vectors)"
    bare = Trust("weak", 0.1, warnings=("early",))
    assert bare.line == (
        "reconstruction: weak (cosine 0.10; against nothing, no other vectors; 1 warning)"
    )
    assert Trust("none", None, reason="no tag").line == "reconstruction: none (no tag)"


def test_the_dictionary_is_strict_json_with_every_field():
    label = Trust("strong", 0.953, 0.9, Baseline(0.965, "x"), 0.1, warnings=("early",))
    tree = json.loads(json.dumps(label.to_dict(), allow_nan=False))
    assert tree["baseline"]["name"] == "x"
    assert (tree["warnings"], tree["line"]) == (["early"], label.line)
    assert set(tree) == {*vars(label), "line", "lines"}


def test_a_label_comes_back_from_its_dictionary():
    label = Trust(
        "strong", 0.9, 0.8, Baseline(0.965, "x", 3), warnings=("early",),
        grounded=Grounded(2, 1, "next"), probabilities={"whole": 0.5}, population="all",
    )  # fmt: skip
    tree = json.loads(json.dumps(label.to_dict()))
    assert Trust.from_dict(tree) == label
    assert Trust.from_dict({**tree, "later": 3}) == label
    assert str(label.grounded) == label.grounded.line
    for wrong in (
        {"baseline": 3}, {"baseline": {"value": 9, "name": "x"}}, {"warnings": "x"},
        {"warnings": [1]}, {"probabilities": {"whole": "x"}}, {"probabilities": []},
        {"cosine": "x"}, {"reason": 3}, {"grounded": {"x": 1}}, {"grade": "good"},
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"label is not one|is no grade"):
            Trust.from_dict({**tree, **wrong})


def test_markup_in_a_label_is_escaped():
    label = Trust("none", None, reason="<b>", population="<b>")
    assert "<b>" not in label._repr_html_()
    assert repr(label) == "<Trust reconstruction: none (<b>)>"
