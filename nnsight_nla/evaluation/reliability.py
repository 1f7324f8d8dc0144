"""Compare predicted probabilities with observed frequencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Predictions of similar size."""

    predicted: float
    """The mean prediction."""
    rate: float
    """How often they came true."""
    n: int
    """The number of predictions."""


@dataclass(frozen=True)
class Reliability:
    """A reliability curve."""

    bins: tuple[Bin, ...]
    """From the lowest predictions to the highest, each with about the same number."""
    error: float
    """The expected calibration error: the mean distance of rate and prediction over the bins."""
    rate: float
    """How often predictions came true, overall."""
    predicted: float
    """The mean prediction."""
    n: int
    """The number of predictions."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {**asdict(self), "bins": [asdict(each) for each in self.bins]}


def reliability(
    predicted: Sequence[float], right: Sequence[bool], bins: int = BINS
) -> Reliability | None:
    """Return the reliability curve of predictions; ``None`` without any.

    >>> found = reliability([0.2] * 10 + [0.9] * 10, [True] * 2 + [False] * 8 + [True] * 10, bins=2)
    >>> round(found.error, 3), [each.rate for each in found.bins]
    (0.05, [0.2, 1.0])
    """
    by: dict[float, list[bool]] = {}
    for p, came_true in zip(predicted, right, strict=True):
        by.setdefault(p, []).append(came_true)
    # Equal predictions may lie in two bins, and none of these may get the ones that came true.
    rates = {p: fmean(found) for p, found in by.items()}
    pairs = [(p, rates[p]) for p in sorted(by) for _ in by[p]]
    if not pairs:
        return None
    count = min(bins, len(pairs))
    edges = [round(i * len(pairs) / count) for i in range(count + 1)]
    found = [
        Bin(fmean([p for p, _ in part]), fmean([y for _, y in part]), len(part))
        for part in (pairs[a:b] for a, b in pairwise(edges))
    ]
    error = sum(each.n * abs(each.rate - each.predicted) for each in found) / len(pairs)
    return Reliability(
        tuple(found),
        error,
        fmean([y for _, y in pairs]),
        fmean([p for p, _ in pairs]),
        len(pairs),
    )
