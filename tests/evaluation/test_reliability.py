"""Predicted probabilities against how often they come true."""

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla.evaluation.reliability import reliability


def test_by_hand():
    found = reliability([0.9, 0.1, 0.8, 0.2], [True, False, False, False], bins=2)
    assert [(each.predicted, each.rate, each.n) for each in found.bins] == [
        (pytest.approx(0.15), 0.0, 2), (pytest.approx(0.85), 0.5, 2),
    ]  # fmt: skip
    assert found.error == pytest.approx((0.15 + 0.35) / 2)
    assert (found.rate, found.predicted, found.n) == (0.25, pytest.approx(0.5), 4)
    assert json.loads(json.dumps(found.to_dict()))["bins"][1]["rate"] == 0.5
    assert reliability([], []) is None


def test_a_calibrated_predictor_has_no_error():
    draw = random.Random(0)
    predicted = [draw.random() for _ in range(20_000)]
    found = reliability(predicted, [draw.random() < p for p in predicted])
    assert found.error < 0.015
    assert [each.n for each in found.bins] == [2000] * 10
    assert sorted(each.rate for each in found.bins) == [each.rate for each in found.bins]


@pytest.mark.parametrize("distance", [-0.3, 0.1, 0.4])
def test_a_constant_wrong_one_has_its_distance(distance):
    draw = random.Random(0)
    right = [draw.random() < 0.5 for _ in range(50_000)]
    # Ties are sorted by their outcome, which must not make bins of the wrong and of the right.
    assert reliability([0.5 + distance] * 50_000, right).error == pytest.approx(
        abs(distance), abs=0.01
    )


def test_an_overconfident_one_has_an_error_that_its_mean_hides():
    right = [True, False] * 500
    found = reliability([0.999 if i < 500 else 0.001 for i in range(1000)], right)
    assert found.predicted == pytest.approx(found.rate)
    assert found.error == pytest.approx(0.499, abs=0.001)


rows = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1)


@given(rows, st.integers(1, 30))
def test_the_error_is_at_least_the_distance_of_the_means_and_at_most_1(found, bins):
    predicted, right = zip(*found, strict=True)
    curve = reliability(predicted, right, bins)
    assert abs(curve.rate - curve.predicted) - 1e-9 <= curve.error <= 1
    assert sum(each.n for each in curve.bins) == curve.n == len(found)
    assert all(each.n for each in curve.bins)
    assert len(curve.bins) == min(bins, len(found))


@given(rows, st.randoms())
def test_the_order_of_the_rows_does_not_count(found, draw):
    other = [*found]
    draw.shuffle(other)
    assert reliability(*zip(*other, strict=True)) == reliability(*zip(*found, strict=True))
