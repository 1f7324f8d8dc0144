"""Whether edited words steer: replace the subject in the text, add the difference, ask the target.

Held-out texts are cut before a fact's answer. The residual at K, at the last token, is explained;
another subject of the same kind takes the place of the first in the words; and
``nla.direction(to=edited, away_from=thought)`` is added to the residual. The target should now
answer for the new subject. Beside it stand a random direction of the same length (which should
answer for nobody in particular) and the smallest edit, which changes the name and leaves the fact
about the old subject standing beside it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .documents import join, sample
from .explanations import parse, rewrite
from .facts import SUBJECTS, held_out_pairs

Rates = dict[str, dict[str, float]]
"""What was added, to the shares whose answer became the new subject's, stayed, or neither."""


@dataclass(frozen=True)
class _Case:
    """A held-out text before its answer, and another subject for it."""

    prompt: str
    old: str
    new: str
    old_answer: str
    new_answer: str


def steering_rates(model: Any, nla: Any, *, cases: int = 200, seed: int = 0) -> Rates:
    """Steer held-out texts by edited explanations and count the target's answers.

    Args:
        model: The target.
        nla: Its NLA.
        cases: How many texts.
        seed: Of the texts, the new subjects and the random directions.
    """
    drawn = _draw(random.Random(seed), cases)
    prompts = [case.prompt for case in drawn]
    with torch.no_grad(), model.trace(prompts):
        thought = nla.explain(nla.layer(model).output[:, -1])
        before = model.lm_head.output[:, -1].argmax(dim=-1).save()
    texts = list(thought.text)
    # An explanation that misses the subject cannot be edited; it counts as one that did not steer.
    editable = [parse(text).subject == c.old for text, c in zip(texts, drawn, strict=True)]
    whole = [rewrite(t, c.old, c.new) for t, c in zip(texts, drawn, strict=True)]
    named = [t.replace(c.old, c.new, 1) for t, c in zip(texts, drawn, strict=True)]
    keep = torch.tensor(editable).float()[:, None]
    step = keep * _steps(nla, whole, thought, editable)
    small = keep * _steps(nla, named, thought, editable)
    noise = torch.randn(step.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise / noise.norm(dim=-1, keepdim=True) * step.norm(dim=-1, keepdim=True)
    rates = {"nothing": _answers(model, drawn, before)}
    for name, added in (
        ("subject and its fact edited", step),
        ("subject's name edited", small),
        ("random direction", noise),
    ):
        with torch.no_grad(), model.trace(prompts):
            nla.layer(model).output[:, -1] += added
            after = model.lm_head.output[:, -1].argmax(dim=-1).save()
        rates[name] = _answers(model, drawn, after)
    return rates


def _steps(nla: Any, edited: list[str], thought: Any, editable: list[bool]) -> Tensor:
    """The direction of each row, zero where its text could not be edited."""
    rows = [row for row, can in enumerate(editable) if can]
    full = torch.zeros(thought.vectors.shape)
    if rows:
        step = nla.direction(to=[edited[row] for row in rows], away_from=thought[rows])
        full[rows] = step.as_subclass(Tensor)
    return full


def _draw(rng: random.Random, cases: int) -> list[_Case]:
    pairs = sorted(held_out_pairs())
    drawn: list[_Case] = []
    while len(drawn) < cases:
        document = sample(rng, *rng.choice(pairs))
        answers = [i for i, word in enumerate(document.words) if word.role == "answer"]
        i = rng.choice(answers)
        before, word = document.words[i - 1].truth, document.words[i]
        if before.subject is None:
            continue
        old, relation = SUBJECTS[before.subject], word.truth.stage
        others = [
            each.name
            for each in SUBJECTS.values()
            if each.kind == old.kind and each.facts.get(relation) != old.facts.get(relation)
        ]
        new = rng.choice(others)
        prompt = join(each.text for each in document.words[:i])
        drawn.append(_Case(prompt, old.name, new, word.text, SUBJECTS[new].facts[relation]))
    return drawn


def _answers(model: Any, cases: list[_Case], tokens: Tensor) -> dict[str, float]:
    words = [model.tokenizer.decode([token]).strip() for token in tokens.tolist()]
    new = sum(word == case.new_answer for word, case in zip(words, cases, strict=True))
    old = sum(word == case.old_answer for word, case in zip(words, cases, strict=True))
    total = len(cases)
    return {"new": new / total, "old": old / total, "neither": 1 - (new + old) / total}
