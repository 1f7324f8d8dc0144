"""The trust label of an explanation: what is measured about it, and the grade that follows.

An explanation is worth believing as far as its words carry *this* vector and not just any. The
reconstructor measures that: the cosine of the text's reconstruction with the vector, beside the
cosines that texts get which know nothing of it (the same text with other vectors, the verbalizer's
text for nothing and for random directions). The **margin** is where the cosine lies between the
best of those and 1; where several samples were drawn, their agreement bounds it.

A grade is a threshold on the margin and no more. What a grade is worth on a given pair is an
empirical question; on the embedded pair, whose truth is known, the answer is the reliability table
in `nnsight_nla.tiny.figures()`, and the thresholds were chosen on its training texts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from .baseline import Baseline

Grade = Literal["high", "medium", "low", "none"]
"""``none`` is a text that could not be extracted; see `grade` for the others."""
HIGH, MEDIUM = 0.85, 0.5
"""The least margin of each grade."""


@dataclass(frozen=True)
class Trust:
    """What is known about one explanation, for whoever is about to believe it."""

    grade: Grade
    """High, medium or low by the margin; none where there is no proper explanation."""
    cosine: float | None
    """Between the vector and its explanation's reconstruction."""
    fve: float | None = None
    """The same as a fraction of variance explained, where there is a baseline."""
    baseline: Baseline | None = None
    """The FVE's denominator."""
    others: float | None = None
    """The mean cosine of the same text with the other vectors of its ``explain()`` call.

    ``None`` where it was the only one: the label then lacks its sharpest control, so explain a
    few vectors of the same text together."""
    null: float | None = None
    """The cosine of the verbalizer's text for no vector at all with this vector."""
    random: float | None = None
    """The mean cosine of its texts for random directions with this vector."""
    margin: float | None = None
    """Where `cosine` lies between the best of these controls (at least 0) and 1; below 0: worse."""
    agreement: float | None = None
    """The mean cosine between the reconstructions of the K samples, where K > 1."""
    warnings: tuple[str, ...] = ()
    """What is known to be noisy about the input or the text."""
    reason: str | None = None
    """Why there is no grade."""

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
        """The label as plain data."""
        return {**asdict(self), "warnings": list(self.warnings), "line": self.line}


def margin(cosine: float, *controls: float | None) -> float:
    """Where `cosine` lies between the best control and 1.

    >>> round(margin(0.95, 0.2, None, 0.5), 3)
    0.9
    >>> margin(0.3, 0.5)
    -0.4
    """
    best = max([0.0, *(value for value in controls if value is not None)])
    return (cosine - best) / max(1.0 - best, 1e-6)


def grade(margin: float, agreement: float | None = None) -> Grade:
    """The grade of a margin; samples that disagree lower it.

    >>> grade(0.9), grade(0.9, agreement=0.7), grade(0.2)
    ('high', 'medium', 'low')
    """
    evidence = margin if agreement is None else min(margin, agreement)
    return "high" if evidence >= HIGH else "medium" if evidence >= MEDIUM else "low"
