"""Stop a training when a figure says so.

>>> condition = Stop.parse("kl>0.5")
>>> condition.reason({"kl": 0.62}), condition.reason({"kl": 0.4}), condition.reason({})
('kl is 0.62, above 0.5', None, None)
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ...errors import shown
from ..rows import TrainingError

_FORM = re.compile(r"\s*(\w+)\s*([<>])\s*(-?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|-?\.\d+)\s*")


@dataclass(frozen=True)
class Stop:
    """A condition to stop at."""

    figure: str
    """The name of a figure; those on held-out rows begin with ``eval_``."""
    above: bool
    """Whether to stop above the limit, or below it."""
    limit: float
    """The limit itself is allowed."""

    @staticmethod
    def parse(condition: object) -> Stop:
        """Read a condition, such as ``"kl>0.5"`` or ``"extraction<0.9"``.

        Raises:
            TrainingError: It has another form.
        """
        found = _FORM.fullmatch(condition) if isinstance(condition, str) else None
        if found is None:
            raise TrainingError(
                f"stop={shown(condition)}: expected a figure, < or >, and a number, such as "
                "'kl>0.5' or 'extraction<0.9'."
            )
        return Stop(found[1], found[2] == ">", float(found[3]))

    def reason(self, figures: Mapping[str, float]) -> str | None:
        """Return why to stop; ``None`` if there is no reason, or no such figure here."""
        value = figures.get(self.figure)
        if value is None or (value <= self.limit if self.above else value >= self.limit):
            return None
        side = "above" if self.above else "below"
        return f"{self.figure} is {value:.4g}, {side} {self.limit:g}"


def parse_stops(conditions: Iterable[object], known: Collection[str]) -> list[Stop]:
    """Read conditions.

    Args:
        conditions: See `Stop.parse`.
        known: The names of the figures of this training.

    Raises:
        TrainingError: One has another form, or names no figure of this training.
    """
    found = [Stop.parse(each) for each in conditions]
    for each in found:
        if each.figure not in known:
            raise TrainingError(
                f"stop names {each.figure!r}, which is not measured in this training. Expected one "
                f"of {', '.join(known)}."
            )
    return found
