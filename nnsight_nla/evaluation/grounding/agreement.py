"""Measure how well a number that needs no truth tells right explanations from wrong ones."""

from __future__ import annotations

import math
from collections.abc import Sequence


def auc(values: Sequence[float | None], right: Sequence[bool]) -> float | None:
    """Return how often a right explanation has the larger value than a wrong one.

    Args:
        values: A number for each explanation; rows without one, or with NaN, are left out.
        right: Whether each explanation is right.

    Returns:
        The area under the ROC curve: 0.5 if the value says nothing, 1 if it tells all apart; ties
        count half. ``None`` if all explanations are right, or none.

    >>> auc([0.9, 0.8, 0.3, None], [True, False, False, True])
    1.0
    >>> auc([1.0, 1.0], [True, False]), auc([1.0], [True])
    (0.5, None)
    """
    pairs = [
        (float(value), bool(good))
        for value, good in zip(values, right, strict=True)
        if value is not None and not math.isnan(value)
    ]
    good = sum(right for _, right in pairs)
    if good in (0, len(pairs)):
        return None
    ranks: dict[float, list[int]] = {}
    for rank, (value, _) in enumerate(sorted(pairs), start=1):
        ranks.setdefault(value, []).append(rank)
    middle = {value: sum(found) / len(found) for value, found in ranks.items()}
    total = sum(middle[value] for value, right in pairs if right)
    return (total - good * (good + 1) / 2) / (good * (len(pairs) - good))
