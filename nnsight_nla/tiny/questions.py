"""Questions about residuals of the tiny target, with their true answers.

The oracle of the tiny world is trained and measured on these. A question is about the subject, an
attribute of it (a fact that the text need not have stated), the tone, or the word that the target
expects next; it is open, or to be answered with yes or no. It has one vector, or three of adjacent
tokens, and the answer is what is true after the last of them::

    asked = questions(collect(model, pairs, documents=100, seed=0), seed=0)
    nla.ask(asked[0].vectors, asked[0].text).text      # compare with asked[0].answer
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor

from .examples import Examples, K
from .explanations import parse
from .facts import NEUTRAL, SUBJECTS, TONES

Topic = Literal["subject", "attribute", "tone", "next", "description"]
"""What a question is about."""
TOPICS: tuple[Topic, ...] = get_args(Topic)[:4]
"""The topics with one fact as the answer."""
DESCRIBE = "Describe the text."
"""The question for a description."""
YES, NO = "Yes", "No"
CHOICES = (YES, NO)
"""The answers to a closed question."""
LAYERS = (K, K + 1)
"""The blocks of the target that the oracle reads."""
WINDOW = 3
"""The tokens of a question with several vectors."""
_NONE = "none"
_TONES = (*TONES, NEUTRAL)


@dataclass(frozen=True)
class Asked:
    """A question about vectors, and its answer."""

    text: str
    """The question."""
    answer: str
    """The true answer."""
    topic: Topic
    """What it is about."""
    closed: bool
    """Whether it is answered with yes or no."""
    vectors: Float[Tensor, "slots d_model"]
    """The vectors it is about."""
    layer: int
    """The block of the target that they are the output of."""
    row: int
    """The number of the example that it was made of."""


def questions(
    examples: Examples, *, seed: int, layer: int = K, per_example: int = 4
) -> list[Asked]:
    """Write questions about each example, as many open as closed ones.

    Args:
        examples: Residuals with their true explanations.
        seed: The seed of the topics, the facts and the wrong answers.
        layer: The block that the residuals are of.
        per_example: The number of questions about each.
    """
    rng = random.Random(seed)
    words = sorted({parse(each).next or _NONE for each in examples.explanations})
    found: list[Asked] = []
    for row, explanation in enumerate(examples.explanations):
        slots = parse(explanation)
        vectors = examples.vectors[row].reshape(-1, examples.vectors.shape[-1])
        for topic in _topics(rng, per_example, slots.subject):
            closed = rng.random() < 0.5
            relation, truth = "", getattr(slots, topic)
            if topic == "attribute":
                relation = rng.choice(sorted(SUBJECTS[str(slots.subject)].facts))
                truth = SUBJECTS[str(slots.subject)].facts[relation]
            text, answer = open_question(topic, relation), truth
            if closed:
                wrong = _others(topic, relation, words, truth)
                said = truth if rng.random() < 0.5 else rng.choice(wrong)
                text = closed_question(topic, said, relation)
                answer = YES if said == truth else NO
            found.append(Asked(text, str(answer), topic, closed, vectors, layer, row))
    return found


def descriptions(examples: Examples, *, layer: int = K) -> list[Asked]:
    """Ask for a description of each example: its true explanation, in one line."""
    found: list[Asked] = []
    for row, (text, held) in enumerate(zip(examples.explanations, examples.vectors, strict=True)):
        vectors = held.reshape(-1, held.shape[-1])
        line = text.replace("\n", " ")
        found.append(Asked(DESCRIBE, line, "description", False, vectors, layer, row))
    return found


def open_question(topic: Topic, relation: str = "") -> str:
    """Return the open question on a topic; on an attribute, of this relation.

    >>> open_question("tone"), open_question("attribute", "language")
    ('What is the tone?', 'What is the language?')
    """
    return f"What is the {'next word' if topic == 'next' else relation or topic}?"


def closed_question(topic: Topic, said: str, relation: str = "") -> str:
    """Return the question whether something is the case.

    >>> closed_question("tone", "calm")
    'Is the tone calm?'
    """
    return f"Is the {'next word' if topic == 'next' else relation or topic} {said}?"


def _topics(rng: random.Random, count: int, subject: str | None) -> list[Topic]:
    """Choose topics; before a subject was named, there is no attribute to ask for."""
    known = subject in SUBJECTS
    possible: Sequence[Topic] = [each for each in TOPICS if known or each != "attribute"]
    return [rng.choice(possible) for _ in range(count)]


def _others(topic: Topic, relation: str, words: Sequence[str], truth: str) -> list[str]:
    """Return the wrong answers to a question."""
    held = {
        "subject": (*SUBJECTS, _NONE),
        "tone": _TONES,
        "next": words,
        "attribute": [s.facts[relation] for s in SUBJECTS.values() if relation in s.facts],
    }[topic]
    return sorted(set(held) - {truth})
