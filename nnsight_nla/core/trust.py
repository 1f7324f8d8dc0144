"""The trust label of an explanation: what was measured, and what follows from it.

The label keeps three things apart, and never mixes them into one word:

* **reconstruction** (`Trust.grade`): does the text describe *this* vector rather than any vector?
  The reconstructor measures the cosine between the text's reconstruction and the vector, compared
  with control cosines (the same text with other vectors, and the verbalizer's texts for no vector
  and for random directions). The **margin** is where the cosine lies between the best control and
  1. If several samples were drawn, their agreement limits the grade::

      label = thought.trust
      label.grade, label.margin      # ("strong", 0.95)
      print(label.line)              # reconstruction: strong (cosine 0.95; against null ...)

* **grounded** (`Trust.grounded`): does the text that the target read contain what the explanation
  quotes, and is the next token that it names likely? Available if the text is known.
* **probability** (`Trust.probability`): how often a statement like this one is right. Available for
  checkpoints that ship a `Calibration`, and valid for the population that it names.

A strong reconstruction does not make a text true: two models that were trained on each other can
encode a vector in false words.
"""

from __future__ import annotations

import math
import warnings as python_warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any, cast

from ..errors import NLAError
from .baseline import Baseline
from .former import warn
from .numeric import is_real

STRONG, PARTIAL = 0.85, 0.5
"""The lowest margin of these grades, for checkpoints without a calibration. They were chosen on the
training texts of the tiny pair."""
GRADES = ("strong", "partial", "weak", "none")
"""``none``: there is nothing to grade, and `Trust.reason` says why."""
WHOLE = "whole"
"""The name of the probability that the whole explanation is right."""
FORMER_GRADES = {"high": "strong", "medium": "partial", "low": "weak"}
"""The names of the grades before 0.1."""


class Grade(str):
    """One of `GRADES`.

    Before 0.1 the grades were called high, medium and low. Files with these words can be read, and
    comparing a grade with one of them works with a warning.

    >>> Grade("high")
    'strong'
    """

    __slots__ = ()

    def __new__(cls, word: str) -> Grade:
        """Return the grade that a current or former word names.

        Raises:
            ValueError: It is neither.
        """
        found = FORMER_GRADES.get(word, word)
        if found not in GRADES:
            raise ValueError(f"{word!r} is no grade; expected one of {', '.join(GRADES)}")
        return super().__new__(cls, found)

    def __eq__(self, other: object) -> bool:
        return self._is(other)

    def __ne__(self, other: object) -> bool:
        return not self._is(other)

    def _is(self, other: object) -> bool:
        if isinstance(other, str) and other in FORMER_GRADES:
            python_warnings.warn(
                f"The grade {other!r} is called {FORMER_GRADES[other]!r} now.",
                DeprecationWarning,
                stacklevel=3,
            )
            return str.__eq__(self, FORMER_GRADES[other])
        return isinstance(other, str) and str.__eq__(self, other)

    __hash__ = str.__hash__


@dataclass(frozen=True)
class Grounded:
    """An explanation checked against the text that the target read."""

    quotes: int = 0
    """The number of quotes in the explanation."""
    so_far: int = 0
    """How many of them occur in the text up to the vector's token."""
    says_next: str | None = None
    """What the explanation says comes next; ``None`` if it names nothing, or if the target's next
    tokens are not known."""
    next_agrees: bool | None = None
    """Whether that is among the target's likeliest next tokens."""

    @property
    def line(self) -> str:
        """The result in one line."""
        parts: list[str] = []
        if self.quotes:
            parts.append(f"{self.so_far} of {self.quotes} quotes are in the text so far")
        if self.says_next is not None:
            among = "is" if self.next_agrees else "is not"
            parts.append(f"next {self.says_next!r} {among} among the target's likeliest tokens")
        return f"grounded: {'; '.join(parts)}"

    def __str__(self) -> str:
        return self.line


@dataclass(frozen=True)
class Trust:
    """The trust label of one explanation."""

    grade: Grade | str
    """The reconstruction: ``strong``, ``partial`` or ``weak`` by the margin; ``none`` without a
    well-formed explanation, without a control, or for a vector that is not of the kind that the
    verbalizer was trained on."""
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
    """`cosine`, rescaled so that the best control (at least 0) is 0 and a perfect cosine is 1."""
    agreement: float | None = None
    """The mean cosine between the reconstructions of the samples; ``None`` for one sample."""
    warnings: tuple[str, ...] = ()
    """Known reasons for noise in the vector or the text."""
    reason: str | None = None
    """Why the grade is ``none``."""
    grounded: Grounded | None = None
    """The check against the text; ``None`` if the text is unknown or nothing can be checked."""
    probabilities: Mapping[str, float] = field(default_factory=dict[str, float])
    """The probability that each kind of statement is right; empty without a calibration."""
    population: str | None = None
    """The vectors for which the probabilities are valid."""

    def __post_init__(self) -> None:
        """Read the grade's word."""
        object.__setattr__(self, "grade", Grade(self.grade))

    @property
    def probability(self) -> float | None:
        """The probability that the whole explanation is right, as the calibration defines that.

        ``None`` if the checkpoint has no calibration for it.
        """
        return self.probabilities.get(WHOLE)

    @property
    def line(self) -> str:
        """The reconstruction in one line, with the probabilities where there are any."""
        if self.cosine is None:
            return f"reconstruction: {self.grade} ({self.reason})"
        parts = [] if self.reason is None else [self.reason]
        parts.append(f"cosine {self.cosine:z.2f}")
        if self.fve is not None and self.baseline is not None:
            over = self.baseline.in_words(digits=3, short=True)
            parts.append(f"FVE {self.fve:z.2f} ({over})")
        controls = {"other vectors": self.others, "null": self.null, "random": self.random}
        against = [f"{name} {value:z.2f}" for name, value in controls.items() if value is not None]
        alone = "" if self.others is not None else ", no other vectors"
        parts.append(f"against {', '.join(against) or 'nothing'}{alone}")
        if self.agreement is not None:
            parts.append(f"samples agree {self.agreement:z.2f}")
        if self.warnings:
            plural = "" if len(self.warnings) == 1 else "s"
            parts.append(f"{len(self.warnings)} warning{plural}")
        return f"reconstruction: {self.grade} ({'; '.join(parts)})"

    @property
    def against(self) -> str | None:
        """What the cosine was compared with, in words; ``None`` if there is nothing to grade."""
        if self.cosine is None:
            return None
        controls = {
            "the other vectors of this text": self.others,
            "the text for no vector": self.null,
            "the texts for random directions": self.random,
        }
        named = [f"{name} {value:z.2f}" for name, value in controls.items() if value is not None]
        return f"cosine {self.cosine:z.2f}, against {', '.join(named) or 'nothing'}"

    @property
    def denominator(self) -> str | None:
        """The denominator of the FVE, in words; ``None`` without an FVE."""
        if self.fve is None or self.baseline is None:
            return None
        return self.baseline.in_words(digits=3)

    @property
    def lines(self) -> tuple[str, ...]:
        """The label in up to three lines: reconstruction, probabilities, grounded."""
        found = [self.line]
        if self.probabilities:
            said = ", ".join(f"{name} {value:z.2f}" for name, value in self.probabilities.items())
            found.append(f"probability of being right: {said}")
        if self.grounded is not None:
            found.append(self.grounded.line)
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """Return the label as plain data, with ``None`` for what is not a finite number."""
        values = asdict(self).items()
        return {
            **{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values},
            "grade": str(self.grade),
            "warnings": list(self.warnings),
            "probabilities": dict(self.probabilities),
            "line": self.line,
            "lines": list(self.lines),
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> Trust:
        """Return the label that `to_dict` made; fields of later versions are left out.

        Raises:
            ValueError: A field is missing or has another type.
        """
        known = {name: given[name] for name in Trust.__dataclass_fields__ if name in given}
        baseline, grounded = known.get("baseline"), known.get("grounded")
        try:
            known |= {
                "baseline": None if baseline is None else Baseline(**baseline),
                "grounded": None if grounded is None else Grounded(**grounded),
                "warnings": _texts(known.get("warnings", [])),
                "probabilities": _numbers(known.get("probabilities", {})),
            }
            for name in ("cosine", "fve", "others", "null", "random", "margin", "agreement"):
                _number_or_none(known.get(name))
            for name in ("reason", "population"):
                _text_or_none(known.get(name))
            return Trust(**known)
        except (TypeError, NLAError) as error:
            raise ValueError(f"its label is not one: {error}") from error

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<Trust {'; '.join(self.lines)}>"

    def _repr_html_(self) -> str:
        return "".join(f"<div>{escape(line)}</div>" for line in self.lines)


class Line(str):
    """The label of an explanation as a table shows it: its reconstruction in one line.

    Before 0.1 a table had the label's fields in this place; ``line["grade"]`` works with a warning.
    The `Trust` object is ``thought.trust``.

    >>> Line("reconstruction: strong (...)", {"grade": "strong"})
    'reconstruction: strong (...)'
    """

    _label: Mapping[str, Any]

    def __new__(cls, text: str, label: Mapping[str, Any] | None = None) -> Line:
        """Return the line of a label, given as `Trust.to_dict` returns it."""
        made = super().__new__(cls, text)
        made._label = label or {}
        return made

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        warn(f"trust[{key!r}] of a table", f"label[{key!r}], in to_dict(), and handle.trust.{key}")
        return self._label[key]


def _texts(given: object) -> tuple[str, ...]:
    listed = cast("list[Any]", given if isinstance(given, list) else [None])
    for each in listed:
        if not isinstance(each, str):
            raise TypeError(f"{given!r} is no list of texts")
    return tuple(listed)


def _numbers(given: object) -> dict[str, float]:
    held = cast("dict[str, Any]", given if isinstance(given, dict) else {"": None})
    for each in held.values():
        if not is_real(each):
            raise TypeError(f"{given!r} has no numbers")
    return held


def _number_or_none(given: object) -> None:
    if given is not None and not is_real(given):
        raise TypeError(f"{given!r} is no number")


def _text_or_none(given: object) -> None:
    if not isinstance(given, str | None):
        raise TypeError(f"{given!r} is no text")


def margin(cosine: float, *controls: float | None) -> float | None:
    """Return `cosine`, rescaled so that the best control (at least 0) is 0 and 1 stays 1.

    Returns:
        ``None`` without a control that is a finite number, or if one is not finite.

    >>> round(margin(0.95, 0.2, None, 0.5), 3)
    0.9
    >>> margin(0.3, 0.5)
    -0.4
    >>> margin(0.9, None, float("nan"))
    """
    known = [value for value in controls if value is not None]
    if not known or not all(map(math.isfinite, (cosine, *known))):
        return None
    best = max(0.0, *known)
    return (cosine - best) / max(1.0 - best, 1e-6)


def grade(
    margin: float,
    agreement: float | None = None,
    *,
    strong: float = STRONG,
    partial: float = PARTIAL,
) -> Grade:
    """Return the grade of a margin; samples that disagree lower it.

    >>> grade(0.9), grade(0.9, agreement=0.7), grade(0.2)
    ('strong', 'partial', 'weak')
    """
    evidence = margin if agreement is None else min(margin, agreement)
    return Grade("strong" if evidence >= strong else "partial" if evidence >= partial else "weak")
