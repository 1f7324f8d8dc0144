"""A share of rows, with its 95% confidence interval and what chance would give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

_Z = 1.959964  # 95%, two-sided.


@dataclass(frozen=True)
class Share:
    """How often something was the case."""

    value: float
    """The share, 0 to 1."""
    low: float
    """The lower end of its 95% interval (Wilson's)."""
    high: float
    """The upper end."""
    n: int
    """The number of rows."""
    chance: float | None = None
    """What guessing would give; ``None`` where that is not defined."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        chance = "" if self.chance is None else f", chance {self.chance:.3g}"
        return f"{self.value:z.3f} [{self.low:z.3f}, {self.high:z.3f}] (n = {self.n:,}{chance})"


def share(right: Sequence[bool], chance: float | None = None) -> Share | None:
    """Return the share of rows that are right, with Wilson's interval; ``None`` without rows.

    >>> print(share([True] * 8 + [False] * 2, chance=0.2))
    0.800 [0.490, 0.943] (n = 10, chance 0.2)
    """
    n = len(right)
    if not n:
        return None
    p, z2 = sum(map(bool, right)) / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z * ((p * (1 - p) + z2 / (4 * n)) / n) ** 0.5 / (1 + z2 / n)
    # At 0 and 1 the interval ends there, but for rounding.
    low, high = min(p, middle - half), max(p, middle + half)
    return Share(p, max(0.0, low), min(1.0, high), n, chance)
