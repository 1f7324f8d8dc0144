"""The trust label of an answer: what the oracle answers without the vectors.

An oracle has no reconstructor. What can be measured is whether the answer depends on the vectors at
all: the same question is asked with nothing written at the slots, with random vectors of the same
norm, and with the vectors of another row. An answer that these give too may be right, but the
vectors are no evidence for it::

    label = answer.trust
    label.without, label.unchanged      # "Paris", ("without", "random")
    print(label.line)                   # unchanged: 50% without vectors, ... (of 8 answers)

The shares are those of the *question*: of all rows of the ``ask()`` call that ask it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from .numeric import is_int, is_real
from .trust import Grade

NAMES: Mapping[str, str] = {
    "without": "without vectors",
    "random": "with random ones",
    "other": "with another row's",
}
"""The controls, and what a line calls them."""


@dataclass(frozen=True)
class AnswerTrust:
    """The trust label of one answer of an oracle."""

    question: str
    """The question."""
    without: str | None = None
    """The answer with nothing written at the slots."""
    random: str | None = None
    """The answer to random vectors of the same norm."""
    other: str | None = None
    """The answer to the vectors of another row; ``None`` if there is no other."""
    unchanged: tuple[str, ...] = ()
    """The controls that give the same answer: ``"without"``, ``"random"``, ``"other"``."""
    shares: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of the answers to this question in the call, the share that each control gives too."""
    answers: int = 0
    """The number of these answers."""
    reason: str | None = None
    """Why there is no label."""
    cosine = fve = None
    """An oracle has no reconstructor."""
    grounded = None
    """Answers are not compared with a text."""

    @property
    def grade(self) -> Grade:
        """Always ``none``: the label is a share, not a word."""
        return Grade("none")

    @property
    def line(self) -> str:
        """The shares of the question in one line."""
        if self.reason is not None:
            return f"not measured: {self.reason}"
        plural = "" if self.answers == 1 else "s"
        return f"{shown_shares(self.shares)} (of {self.answers} answer{plural} to this question)"

    @property
    def lines(self) -> tuple[str, ...]:
        """The label in one or two lines: the shares, and the answers of the controls."""
        held = {name: getattr(self, name) for name in NAMES}
        said = [f"{NAMES[name]} {text!r}" for name, text in held.items() if text is not None]
        return (self.line, f"answers {', '.join(said)}") if said else (self.line,)

    def to_dict(self) -> dict[str, Any]:
        """Return the label as plain data."""
        return {
            **asdict(self),
            "unchanged": list(self.unchanged),
            "shares": dict(self.shares),
            "line": self.line,
            "lines": list(self.lines),
        }

    @staticmethod
    def from_dict(given: Mapping[str, Any]) -> AnswerTrust:
        """Return the label that `to_dict` made; fields of later versions are left out.

        Raises:
            ValueError: A field is missing or has another type.
        """
        names = AnswerTrust.__dataclass_fields__
        known: dict[str, Any] = {name: given[name] for name in names if name in given}
        texts = [known.get(name) for name in (*NAMES, "reason")]
        unchanged, shares = known.get("unchanged", []), known.get("shares", {})
        good = (
            isinstance(known.get("question"), str)
            and all(isinstance(each, str | None) for each in texts)
            and isinstance(unchanged, list)
            and isinstance(shares, dict)
            and {*unchanged, *shares} <= {*NAMES}
            and all(map(is_real, shares.values()))
            and is_int(known.get("answers", 0), 0)
        )
        if not good:
            raise ValueError(f"its label is not one: {known!r}")
        known["unchanged"] = tuple(unchanged)
        return AnswerTrust(**known)

    def __str__(self) -> str:
        return "\n".join(self.lines)

    def __repr__(self) -> str:
        return f"<AnswerTrust {'; '.join(self.lines)}>"

    def _repr_html_(self) -> str:
        return "".join(f"<div>{escape(line)}</div>" for line in self.lines)


def shown_shares(shares: Mapping[str, float]) -> str:
    """Say which share of the answers each control gives too.

    >>> shown_shares({"without": 0.5, "random": 0.25})
    'unchanged: 50% without vectors, 25% with random ones, no other row'
    """
    parts = [f"{shares[name]:.0%} {said}" for name, said in NAMES.items() if name in shares]
    if "other" not in shares:
        parts.append("no other row")
    return f"unchanged: {', '.join(parts)}"


def same_answer(one: str, other: str) -> bool:
    """Return whether two answers are the same but for case, white space and final punctuation.

    >>> same_answer("Yes.", " yes"), same_answer("Paris", "Rome")
    (True, False)
    """
    return _plain(one) == _plain(other)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?,;:")
