"""Wilson's interval of a share."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla.evaluation.grounding.intervals import share


def test_by_hand():
    found = share([True] * 8 + [False] * 2, 0.2)
    # Newcombe 1998, method 3, for 8 of 10.
    assert (found.value, found.n, found.chance) == (0.8, 10, 0.2)
    assert (found.low, found.high) == (
        pytest.approx(0.4902, abs=1e-4),
        pytest.approx(0.9433, abs=1e-4),
    )
    assert found.to_dict() == {
        "value": 0.8, "low": found.low, "high": found.high, "n": 10, "chance": 0.2,
    }  # fmt: skip
    assert str(share([True])) == "1.000 [0.207, 1.000] (n = 1)"
    assert share([]) is None


@given(st.lists(st.booleans(), min_size=1))
def test_the_interval_has_the_share_and_lies_in_0_to_1(right):
    found = share(right)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high > found.low


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    draw, covered = random.Random(0), 0
    for _ in range(2000):
        found = share([draw.random() < 0.2 for _ in range(60)])
        covered += found.low <= 0.2 <= found.high
    assert 0.92 <= covered / 2000 <= 0.98
