"""The record of a calibration: to JSON and back, and whatever else a file may hold."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla import CheckpointError
from nnsight_nla.core.calibration import FEATURES, Calibration, Residuals, Statement

FULL = Calibration(
    "held-out words of the tiny world",
    600,
    (
        Statement("whole", None, {"intercept": -0.5, "log_odds": 1.1}, 0.75, 0.02),
        Statement("next", ("Next: ", " | ", "\n"), {"cosine": 2.0, "typical": -1.0}),
    ),
    strong=0.8,
    partial=0.4,
    noisy_positions=12,
    residuals=Residuals((0.5, -1.25, 3.0), 0.25, 1.0, 90.5),
    sidecar_hash="ab" * 32,
    notes={"reliability": {"whole": {"error": 0.02}}},
)


def test_to_json_and_back():
    for given_ in (FULL, Calibration("x", 1)):
        tree = json.loads(json.dumps(given_.to_dict(), allow_nan=False))
        assert Calibration.from_dict(tree) == given_
        assert Calibration.from_dict(tree).to_dict() == given_.to_dict()
        assert Calibration.from_dict(given_.to_dict()) == given_
    assert Calibration.from_dict(FULL.to_dict()).notes == FULL.notes


def changed(place: str, value: object) -> dict:
    """`FULL` as JSON with another value at a place such as ``statements.0.name``."""
    tree = json.loads(json.dumps(FULL.to_dict()))
    node = tree
    *parents, leaf = place.split(".")
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    node[int(leaf) if leaf.isdigit() else leaf] = value
    return tree


NUMBERS = [None, "1", True, math.nan, math.inf, 10**400, -1e31, [1.0]]
WRONG = {
    "version": [None, 0, 2, "1", [1]],
    "population": [None, 3, ["x"], "\ud800"],
    "n": [None, 0, -1, 1.5, True, "600"],
    "strong": NUMBERS,
    "partial": NUMBERS,
    "noisy_positions": [-1, 1.5, True, "12", [12]],
    "statements": [None, {}, "x", 3],
    "statements.0": [None, "whole", []],
    "statements.0.name": [None, 3, "next", "\ud800"],
    "statements.1.part": ["Next: ", [], [3], ["Next: ", None], ["a", ""], {}, ["\ud800"]],
    "statements.0.rate": [*NUMBERS[1:], 1.01, -0.01],
    "statements.0.error": [*NUMBERS[1:], 2],
    "statements.0.weights": [None, [], 3, {"bias": 1.0}, {"cosine": "1"}],
    "statements.0.weights.log_odds": NUMBERS,
    "residuals": [[], "x", 3, {}],
    "residuals.mean": [None, 3, "abc", [None], [10**400], [[1.0]], {"0": 1}],
    "residuals.least": NUMBERS,
    "residuals.shortest": NUMBERS,
    "residuals.longest": NUMBERS,
    "sidecar_hash": [3, ["ab"], {}, "\ud800"],
    "notes": [[1], "x", 3],
}


@pytest.mark.parametrize(
    ("place", "value"), [(place, value) for place, values in WRONG.items() for value in values]
)
def test_a_wrong_field_of_a_strangers_file_is_named(place, value):
    names = [each for each in place.split(".") if not each.isdigit()]
    # Numbers of a mapping are named with it.
    name = {"statements": "a statement", "name": "a statement", "log_odds": "weights"}.get(
        names[-1], names[-1]
    )
    name = {"residuals": "residuals"}.get(names[0], name)
    name = "statements" if place == "statements" else name
    with pytest.raises(CheckpointError, match=rf"^some/file.json: {name}.* is .*, expected "):
        Calibration.from_dict(changed(place, value), "some/file.json")


def test_a_missing_field_is_named():
    for name in ("version", "population", "n", "strong", "partial", "statements"):
        tree = FULL.to_dict()
        del tree[name]
        with pytest.raises(CheckpointError, match=rf"calibration: {name} is None, expected"):
            Calibration.from_dict(tree)
    for name in ("noisy_positions", "residuals", "sidecar_hash", "notes"):
        tree = FULL.to_dict()
        del tree[name]
        assert not getattr(Calibration.from_dict(tree), name)


@pytest.mark.parametrize("given_", [None, [], "x", 3, 2.5, [FULL.to_dict()]])
def test_what_is_no_object_is_refused(given_):
    with pytest.raises(CheckpointError, match=r"calibration: it is .*, expected an object"):
        Calibration.from_dict(given_)


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -(10**400), 1e300, 2**63]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)  # fmt: skip
places = st.sampled_from(
    [*WRONG, "statements.1.weights", "statements.1.part.0", "residuals.mean.1"]
)


@given(st.lists(st.tuples(places, anything), max_size=3), anything)
def test_no_json_raises_another_error(changes, alone):
    tree = json.loads(json.dumps(FULL.to_dict()))
    for place, value in changes:
        node = tree
        *parents, leaf = place.split(".")
        try:
            for key in parents:
                node = node[int(key) if key.isdigit() else key]
            node[int(leaf) if leaf.isdigit() else leaf] = value
        except (LookupError, TypeError):
            continue
    before = copy.deepcopy(tree)
    for each in (tree, alone):
        try:
            found = Calibration.from_dict(each)
        except CheckpointError:
            continue
        _use(found)
    assert repr(tree) == repr(before)


def _use(found: Calibration) -> None:
    """What a label does with a calibration must work for each that is accepted."""
    features = {"log_odds": 12.0, "likelihood": -9.0, "cosine": -1.0, "typical": 1.0}
    for each in found.statements:
        value = each.probability(features)
        assert value is None or 0 <= value <= 1
        each.span("Next: hive | field")
    json.dumps(found.to_dict(), allow_nan=True).encode()
    if found.residuals is not None and found.residuals.mean:
        found.residuals.typical(torch.ones(2, len(found.residuals.mean)))


def test_the_probability_by_hand():
    each = Statement("x", None, {"intercept": 1.0, "log_odds": 0.5, "cosine": -2.0})
    features = {"log_odds": 3.0, "cosine": 0.25, "likelihood": math.nan}
    assert each.probability(features) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert each.probability({"log_odds": 3.0}) is None
    for value in (None, math.nan, math.inf):
        assert each.probability({**features, "cosine": value}) is None


@pytest.mark.parametrize(("weight", "expected"), [(1e30, 1.0), (-1e30, 0.0), (1e308, None)])
def test_huge_weights_end_at_0_or_1(weight, expected):
    # A file with more than 1e30 is refused; a record by hand has no number where none is finite.
    each = Statement("x", None, {"cosine": weight})
    found = each.probability({"cosine": 1.0 if expected is not None else 10.0})
    assert found == (expected if expected is None else pytest.approx(expected))


@pytest.mark.parametrize(
    ("part", "text", "expected"),
    [
        (None, "", ""),
        (None, "all of it", "all of it"),
        (("Next: ", " | ", "\n"), "Last: a\nNext: hive | field\nx", "hive | "),
        (("Next: ", " | ", "\n"), "Next: hive\nx | y", "hive\n"),
        (("Next: ",), "Next: hive\nx", "hive\nx"),
        (("Next: ", "."), "Next: ", ""),
        (("", ","), "Paris, the", "Paris,"),
        (("Next: ", "\n"), "About bees.", None),
    ],
)
def test_the_part_of_a_text(part, text, expected):
    found = Statement("x", part, {}).span(text)
    assert (found if found is None else text[slice(*found)]) == expected


def test_typical_is_the_cosine_with_the_mean():
    vectors = torch.tensor([[2.0, 0.0], [0.0, -3.0], [1.0, 1.0], [0.0, 0.0], [1e30, 0.0]])
    found = Residuals((5.0, 0.0), 0, 0, 1).typical(vectors)
    assert found.tolist() == pytest.approx([1, 0, 0.5**0.5, 0, 1])
    assert Residuals((1e30, 0.0), 0, 0, 1).typical(vectors)[2] == pytest.approx(0.5**0.5)
    assert Residuals((1.0, 0.0), 0, 0, 1).typical(vectors.bfloat16()).dtype == torch.float32
    assert Residuals((1.0,), 0, 0, 1).typical(torch.tensor([[math.nan]])).isnan().all()


def test_every_feature_can_have_a_weight():
    tree = changed("statements.0.weights", dict.fromkeys(["intercept", *FEATURES], 1))
    weights = Calibration.from_dict(tree).statements[0].weights
    assert set(weights) == {"intercept", *FEATURES}


def test_it_prints_as_a_line_or_a_few():
    look = Residuals(tuple([0.123] * 500), 0.1, 1.0, 2.0)
    statement = Statement("<b>", None, {}, 0.9, 0.05)
    found = Calibration("texts", 1000, (statement,), noisy_positions=2, residuals=look)
    assert repr(found) == "<Calibration of 1 statement on 1,000 vectors>"
    assert "0.123" not in repr(look)
    assert str(found).splitlines() == [
        "calibration, measured on 1,000 vectors: texts",
        "  strong from a margin of 0.85, partial from 0.50",
        "  the first 2 positions are noisy",
        "  statement '<b>', right 0.90, calibration error 0.050",
    ]
    assert "&lt;b&gt;" in found._repr_html_()
