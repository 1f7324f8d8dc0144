"""The gold explanation of a residual, and the slots by which an explanation is scored.

An explanation has three lines: what the text is about and its tone; what is being said; the word
just read and the word expected next. The lines have six fixed *slots*, so an explanation can be
compared with the truth slot by slot, and each slot tests something else: `subject` and `attribute`
test knowledge, `tone` and `stage` test what the text so far implies, `current` and `next` test
what is specific to this token.

>>> truth = Truth("Paris", "cheerful", "language")
>>> print(explain(truth, current="speak", next_word="French"))
About Paris, the capital of France; cheerful tone.
Stating the language.
After: speak. Next: French.
>>> parse(explain(truth, current="speak", next_word="French")).attribute
'France'
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from ..evaluation.grounding.next_token import name_of
from .documents import Truth
from .facts import SUBJECTS

UNSURE = "unsure"
"""The `next` slot where the target gives no word a probability of 0.5 or more."""
END = "end"
"""The `next` slot where the target expects the text to end."""

_RELATION_WORDS = {"currency": "money", "group": "animal group"}
_STAGES = {
    "opening": "Opening the text.",
    "intro": "Introducing the topic.",
    "unknown": "Starting a new fact.",
}
_NO_SUBJECT = "No subject yet"
_HEADS = {
    "city": ("About {S}, the capital of {A}", "capital"),
    "country": ("About {S}, with capital {A}", "capital"),
    "animal": ("About the {S}, a kind of {A}", "group"),
    "job": ("About a {S}, who works in the {A}", "workplace"),
}
_REST = r"; (\w+) tone\.\n(.+)\.\nAfter: (\w+)\. Next: (\w+)\."
_PATTERNS = tuple(
    re.compile(head.replace("{S}", r"(\w+)").replace("{A}", r"(\w+)") + _REST)
    for head, _ in _HEADS.values()
)
_PATTERN_NO_SUBJECT = re.compile(_NO_SUBJECT + _REST)


@dataclass(frozen=True)
class Slots:
    """The slots of an explanation; all ``None`` where the text does not parse."""

    subject: str | None = None
    """The subject of the text; ``none`` before it was named."""
    attribute: str | None = None
    """The fact about the subject that the first line states."""
    tone: str | None = None
    """The tone of the text."""
    stage: str | None = None
    """The second line: what is being said."""
    current: str | None = None
    """The word just read."""
    next: str | None = None
    """The word that the target expects."""


SLOTS = tuple(field.name for field in fields(Slots))


def explain(truth: Truth, current: str, next_word: str) -> str:
    """Write the gold explanation of the residual after a word.

    Args:
        truth: What a reader knows after the word.
        current: The word just read.
        next_word: What the target expects next: a word, `END` or `UNSURE`.
    """
    head = f"{_head(truth.subject)}; {truth.tone} tone."
    return f"{head}\n{_stage(truth.stage)}\nAfter: {name_of(current)}. Next: {name_of(next_word)}."


def parse(text: str) -> Slots:
    """Parse an explanation into its slots; all ``None`` when it is not of the gold form."""
    if match := _PATTERN_NO_SUBJECT.fullmatch(text):
        return Slots("none", "none", *match.groups())
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(text):
            return Slots(*match.groups())
    return Slots()


def rewrite(text: str, old: str, new: str) -> str:
    """Replace the subject of a gold-form explanation, and the fact stated about it, by another's.

    >>> rewrite("About Paris, the capital of France; calm tone.", "Paris", "Rome")
    'About Rome, the capital of Italy; calm tone.'
    """
    return text.replace(_head(old), _head(new), 1)


def _head(subject: str | None) -> str:
    if subject is None:
        return _NO_SUBJECT
    template, relation = _HEADS[SUBJECTS[subject].kind]
    answer = SUBJECTS[subject].facts[relation]
    return template.replace("{S}", subject).replace("{A}", answer)


def _stage(stage: str) -> str:
    return _STAGES.get(stage) or f"Stating the {_RELATION_WORDS.get(stage, stage)}."
