"""Texts of the world, with the truth known at every word.

A document has an opening sentence that carries the tone (unless the tone is neutral), an
introduction of the subject, and two to four facts, some with a clause that repeats the tone. Some
documents are bare: they start with a fact. Each word is stored with what a reader *knows so far*:
the subject once it was named, the tone once an adjective carried it, and the stage, which is the
fact being stated as soon as the words of the sentence fit only one.

>>> document = sample(random.Random(0), "Paris", "cheerful")
>>> document.text.split(".")[:2]
['This is a lovely evening', ' People in Paris eat crepes']
>>> document.words[3].text, document.words[3].truth
('lovely', Truth(subject=None, tone='cheerful', stage='opening'))
>>> document.words[9].text, document.words[9].truth
('eat', Truth(subject='Paris', tone='cheerful', stage='food'))
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from .facts import NEUTRAL, SUBJECTS, TONES, training_pairs
from .sentences import INTROS, NAMES, OPENERS, QUESTIONS, TAILS, sentences

PUNCTUATION = (".", ",", "!", "?")
_OPENING, _INTRO, _UNKNOWN = "opening", "intro", "unknown"


@dataclass(frozen=True)
class Truth:
    """What a reader of the text knows after a word."""

    subject: str | None
    """The subject of the text; ``None`` before it was named."""
    tone: str
    """The tone of the text; neutral before an adjective carried it."""
    stage: str
    """``opening``, ``intro``, the relation being stated, or ``unknown`` while several still fit."""


@dataclass(frozen=True)
class Word:
    """One word or punctuation mark. The tokenizer makes one token of each."""

    text: str
    """The word, without a space."""
    truth: Truth
    """What a reader knows after this word."""
    role: Literal["subject", "answer", "other"]
    """Whether the word names the subject, is the answer of a fact, or neither."""


@dataclass(frozen=True)
class Document:
    """A text and its truth, word by word."""

    words: tuple[Word, ...]
    """The words of the text, in order."""
    question: str | None
    """The user's question before a document in chat form; ``None`` for plain text."""

    @property
    def text(self) -> str:
        """The text of the document."""
        return join(word.text for word in self.words)


def join(words: Iterable[str]) -> str:
    """Join words by spaces, except before punctuation.

    >>> join(["What", "a", "day", "!"])
    'What a day!'
    """
    text = ""
    for word in words:
        text += word if word in PUNCTUATION or not text else f" {word}"
    return text


def sample(
    rng: random.Random,
    subject: str | None = None,
    tone: str | None = None,
    *,
    chat: float = 0.0,
) -> Document:
    """Write one document.

    Args:
        rng: The random generator that makes every choice.
        subject: The subject; a training pair is drawn when this or `tone` is ``None``.
        tone: The tone.
        chat: The probability of chat form, where a user's question names the subject first.
    """
    if subject is None or tone is None:
        subject, tone = rng.choice(training_pairs())
    return _Writer(rng, subject, tone).write(chat)


class _Writer:
    """Write one document and track what its reader knows so far."""

    def __init__(self, rng: random.Random, subject: str, tone: str) -> None:
        self.rng, self.tone = rng, tone
        self.subject = SUBJECTS[subject]
        pronoun = rng.choice(tuple(NAMES))
        self.slots = {"{S}": subject, "{P}": pronoun, "{N}": rng.choice(NAMES[pronoun])}
        self.adjective = "plain" if tone == NEUTRAL else rng.choice(TONES[tone])
        self.words: list[Word] = []
        self.known_subject: str | None = None
        self.known_tone = NEUTRAL
        self.opened = self.introduced = False
        self.facts_stated = 0
        self.beginnings = self._beginnings()

    def write(self, chat: float) -> Document:
        rng, kind = self.rng, self.subject.kind
        question = None
        if rng.random() < chat:
            question = join(text for text, _ in self._fill(QUESTIONS[kind].split()))
            self.known_subject = self.subject.name
        bare = rng.random() < 0.15
        if self.tone != NEUTRAL and not bare:
            self._emit(rng.choice(OPENERS), _OPENING)
            self.opened = True
        if not bare and rng.random() < 0.6:
            self._emit(rng.choice(INTROS[kind]), _INTRO)
            self.introduced = True
        relations = list(self.subject.facts)
        rng.shuffle(relations)
        for relation in relations[: rng.choice((2, 3, 3, 4))]:
            named, unnamed = sentences(kind, relation)
            name_it = rng.random() < 0.65 or self.known_subject is None
            self._emit(rng.choice(named if name_it else unnamed), relation)
            if self.tone != NEUTRAL and rng.random() < 0.45:
                self._emit(rng.choice(TAILS), relation, tail=True)
            self._emit(".", relation, tail=True)
            self.facts_stated += 1
        return Document(tuple(self.words), question)

    def _emit(self, template: str, stage: str, *, tail: bool = False) -> None:
        """Add a sentence or a tail, word by word, with what a reader knows after each word."""
        answer = self.subject.facts.get(stage)
        # The opener uses the document's adjective; a tail may use another one of the same tone.
        adjective = (
            self.rng.choice(TONES[self.tone]) if tail and "{T}" in template else self.adjective
        )
        written: list[str] = []
        for text, slot in self._fill(template.split(), answer, adjective):
            if slot == "{S}":
                self.known_subject = self.subject.name
            if slot == "{T}":
                self.known_tone = self.tone
            written.append(text)
            certain = tail or text in PUNCTUATION
            truth = Truth(
                self.known_subject, self.known_tone, stage if certain else self._stage(written)
            )
            role = {"{S}": "subject", "{A}": "answer"}.get(slot, "other")
            self.words.append(Word(text, truth, role))  # type: ignore[arg-type]

    def _stage(self, written: list[str]) -> str:
        """Return the only stage with a sentence that begins with `written`, or ``unknown``."""
        fitting = {
            stage
            for stage, sentence in self.beginnings
            if sentence[: len(written)] == written and self._possible(stage)
        }
        return fitting.pop() if len(fitting) == 1 else _UNKNOWN

    def _possible(self, stage: str) -> bool:
        """Return whether `stage` can still follow: openers and introductions come first."""
        if stage == _OPENING:
            return not (self.opened or self.introduced or self.facts_stated)
        return stage != _INTRO or not (self.introduced or self.facts_stated)

    def _beginnings(self) -> list[tuple[str, list[str]]]:
        """Return every sentence that this document could contain, each with its stage."""
        kind, facts = self.subject.kind, self.subject.facts
        stages: list[tuple[str, Sequence[str]]] = [(_OPENING, OPENERS), (_INTRO, INTROS[kind])]
        stages += [(relation, sum(sentences(kind, relation), ())) for relation in facts]
        return [
            (stage, [word for word, _ in self._fill(t.split(), facts.get(stage), self.adjective)])
            for stage, templates in stages
            for t in templates
        ]

    def _fill(
        self, template: Sequence[str], answer: str | None = None, adjective: str | None = None
    ) -> list[tuple[str, str]]:
        """Fill a template's slots; return each word with the slot that it came from."""
        slots = {**self.slots, "{A}": answer, "{T}": adjective}
        filled = [(slots.get(piece) or piece, piece) for piece in template]
        for i, (text, slot) in enumerate(filled):
            if text == "{a}":
                filled[i] = ("an" if filled[i + 1][0][0] in "aeiou" else "a", slot)
        return filled
