"""The area under the ROC curve, against all pairs counted one by one."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla.evaluation.grounding.agreement import auc

values = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.inf, -math.inf, math.nan])


@given(st.lists(st.tuples(values | st.floats(), st.booleans())))
def test_as_all_pairs_say(rows):
    known = [(v, right) for v, right in rows if v is not None and not math.isnan(v)]
    pairs = [(a, b) for a, good in known for b, bad in known if good and not bad]
    found = auc([v for v, _ in rows], [right for _, right in rows])
    if not pairs:
        assert found is None
    else:
        assert found == pytest.approx(sum((a > b) + (a == b) / 2 for a, b in pairs) / len(pairs))


@given(st.lists(st.tuples(st.integers(-9, 9), st.booleans())))
def test_the_other_way_round_it_is_the_rest(rows):
    numbers, right = [v for v, _ in rows], [good for _, good in rows]
    found, other = auc(numbers, right), auc([-v for v in numbers], right)
    assert (found is None) == (other is None)
    assert found is None or found + other == pytest.approx(1)


def test_lengths_have_to_fit():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        auc([1.0], [True, False])
    assert auc([], []) is None
