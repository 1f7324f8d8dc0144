"""Numbers, and values that only pass for numbers."""

import math

import pytest
import torch

from nnsight_nla.core.numeric import is_int, is_real

NOT_NUMBERS = [True, False, None, "7", b"7", [7], 7j, torch.tensor(7)]


@pytest.mark.parametrize("value", [0, 7, -7, 10**400])
def test_an_integer_of_any_size_is_both(value):
    assert is_int(value)
    assert is_real(value)


@pytest.mark.parametrize("value", [0.0, -2.5, 7.0, 1e308, 5e-324])
def test_a_float_is_real_but_not_an_integer(value):
    assert is_real(value)
    assert not is_int(value)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, math.nan, math.inf, -math.inf])
def test_what_only_passes_for_a_number_is_neither(value):
    assert not is_int(value)
    assert not is_real(value)


def test_the_lower_bound_is_inclusive():
    assert [is_int(value, 1) for value in (0, 1, 2, True, 1.0)] == [False, True, True, False, False]
