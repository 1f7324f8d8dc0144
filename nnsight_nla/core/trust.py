"""The trust label of an explanation: the measurements and the grade that follows from them.

An explanation can be trusted if its text describes *this* vector rather than any vector. The
reconstructor measures that: the cosine between the text's reconstruction and the vector, compared
with control cosines (the same text with other vectors, and the verbalizer's texts for no vector and
for random directions). The **margin** is where the cosine lies between the best control and 1. If
several samples were drawn, their agreement bounds the grade::

    label = thought.trust
    label.grade, label.margin      # ("high", 0.95)
    print(label.line)              # trust: high (cosine 0.95; against other vectors 0.10, ...)

A grade is only a threshold on the margin. How reliable each grade is depends on the pair of models.
The thresholds were chosen on the training texts of the tiny pair, whose true features are known;
`nnsight_nla.tiny.figures()` has the reliability of each grade there.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .baseline import Baseline

Grade = Literal["high", "medium", "low", "none"]
"""``none``: there is no well-formed explanation to grade; see `grade` for the others."""
HIGH, MEDIUM = 0.85, 0.5
"""The lowest margin of these grades."""


@dataclass(frozen=True)
class Trust:
    """The trust label of one explanation."""

    grade: Grade
    """``high``, ``medium`` or ``low`` by the margin; ``none`` without a well-formed explanation."""
    cosine: float | None
    """The cosine between the vector and the reconstruction of its explanation."""
    fve: float | None = None
    """The fraction of variance explained; ``None`` without a baseline."""
    baseline: Baseline | None = None
    """The denominator of the FVE."""
    others: float | None = None
    """The mean cosine of the same reconstruction with the other vectors of the ``explain()`` call.

    ``None`` if there was only one vector. This is the strongest control, so explain several vectors
    of the same text in one call."""
    null: float | None = None
    """The cosine of this vector with the reconstruction of the text for no vector."""
    random: float | None = None
    """The mean cosine of this vector with the reconstructions of texts for random directions."""
    margin: float | None = None
    """Where `cosine` lies between the best control (at least 0) and 1; below 0 it is worse."""
    agreement: float | None = None
    """The mean cosine between the reconstructions of the samples; ``None`` for one sample."""
    warnings: tuple[str, ...] = ()
    """Known reasons for noise in the vector or the text."""
    reason: str | None = None
    """Why the grade is ``none``."""

    @property
    def line(self) -> str:
        """The label in one line."""
        if self.cosine is None:
            return f"trust: {self.grade} ({self.reason})"
        parts = [f"cosine {self.cosine:.2f}"]
        if self.fve is not None and self.baseline is not None:
            parts.append(f"FVE {self.fve:.2f} over {self.baseline.value:.3f}")
        controls = {"other vectors": self.others, "null": self.null, "random": self.random}
        against = [f"{name} {value:.2f}" for name, value in controls.items() if value is not None]
        alone = "" if self.others is not None else ", no other vectors"
        parts.append(f"against {', '.join(against) or 'nothing'}{alone}")
        if self.agreement is not None:
            parts.append(f"samples agree {self.agreement:.2f}")
        if self.warnings:
            plural = "" if len(self.warnings) == 1 else "s"
            parts.append(f"{len(self.warnings)} warning{plural}")
        return f"trust: {self.grade} ({'; '.join(parts)})"

    def to_dict(self) -> dict[str, Any]:
        """Return the label as plain data."""
        return {**asdict(self), "warnings": list(self.warnings), "line": self.line}


def margin(cosine: float, *controls: float | None) -> float:
    """Return where `cosine` lies between the best control (at least 0) and 1.

    >>> round(margin(0.95, 0.2, None, 0.5), 3)
    0.9
    >>> margin(0.3, 0.5)
    -0.4
    """
    best = max([0.0, *(value for value in controls if value is not None)])
    return (cosine - best) / max(1.0 - best, 1e-6)


def grade(margin: float, agreement: float | None = None) -> Grade:
    """Return the grade of a margin; samples that disagree lower it.

    >>> grade(0.9), grade(0.9, agreement=0.7), grade(0.2)
    ('high', 'medium', 'low')
    """
    evidence = margin if agreement is None else min(margin, agreement)
    return "high" if evidence >= HIGH else "medium" if evidence >= MEDIUM else "low"
