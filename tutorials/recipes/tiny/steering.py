"""Measure whether edited words steer the target.

A held-out text is cut before a fact's answer, and the residual at K, at the last token, is
explained. In the explanation the subject is replaced by another of the same kind, and
``nla.direction(to=edited, away_from=thought)`` is added to the residual. The target should now
answer for the new subject. Two comparisons: a random direction of the same norm, which should
change little, and the smallest edit, which changes the name and leaves the fact about the old
subject as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nnsight import TransformersModel
from torch import Tensor

from nnsight_nla import NLA, Explanation
from nnsight_nla.tiny.documents import join, sample
from nnsight_nla.tiny.explanations import parse, rewrite
from nnsight_nla.tiny.facts import SUBJECTS, held_out_pairs


@dataclass(frozen=True)
class Case:
    """A held-out text before its answer, and another subject for it."""

    prompt: str
    """The text, up to the word before the answer."""
    old: str
    """The subject of the text."""
    new: str
    """The subject to steer towards."""
    old_answer: str
    """The answer for the old subject."""
    new_answer: str
    """The answer for the new subject."""


def steering_rates(
    model: TransformersModel, nla: NLA, *, cases: int = 200, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Steer held-out texts by edited explanations and count the target's answers.

    Args:
        model: The target.
        nla: Its NLA.
        cases: How many texts.
        seed: The seed of the texts, the new subjects and the random directions.

    Returns:
        For each vector that was added, the share of answers that are the ``new`` subject's, the
        ``old`` one's, or ``neither``.
    """
    drawn = _draw(random.Random(seed), cases)
    prompts = [case.prompt for case in drawn]
    with torch.no_grad(), model.trace(prompts):
        thoughts = nla.explain(nla.layer(model).output[:, -1])
        before = model.lm_head.output[:, -1].argmax(dim=-1).save()
    texts = list(thoughts.text)
    # An explanation that misses the subject cannot be edited; it counts as one that did not steer.
    editable = [parse(text).subject == c.old for text, c in zip(texts, drawn, strict=True)]
    with_fact = [rewrite(text, c.old, c.new) for text, c in zip(texts, drawn, strict=True)]
    name_alone = [text.replace(c.old, c.new, 1) for text, c in zip(texts, drawn, strict=True)]
    step = _directions(nla, with_fact, thoughts, editable)
    small_step = _directions(nla, name_alone, thoughts, editable)
    noise = torch.randn(step.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise / noise.norm(dim=-1, keepdim=True) * step.norm(dim=-1, keepdim=True)
    rates = {"nothing": _answer_rates(model, drawn, before)}
    for name, added in (
        ("subject and its fact edited", step),
        ("subject's name edited", small_step),
        ("random direction", noise),
    ):
        with torch.no_grad(), model.trace(prompts):
            nla.layer(model).output[:, -1] += added
            after = model.lm_head.output[:, -1].argmax(dim=-1).save()
        rates[name] = _answer_rates(model, drawn, after)
    return rates


def _directions(
    nla: NLA, edited: Sequence[str], thoughts: Explanation, editable: Sequence[bool]
) -> Tensor:
    """Return each row's direction, and zero for a row whose text cannot be edited."""
    rows = [row for row, possible in enumerate(editable) if possible]
    directions = torch.zeros(thoughts.vectors.shape)
    if rows:
        step = nla.direction(to=[edited[row] for row in rows], away_from=thoughts[rows])
        directions[rows] = step.as_subclass(Tensor)
    return directions


def _draw(rng: random.Random, cases: int) -> list[Case]:
    pairs = sorted(held_out_pairs())
    drawn: list[Case] = []
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
        drawn.append(Case(prompt, old.name, new, word.text, SUBJECTS[new].facts[relation]))
    return drawn


def _answer_rates(
    model: TransformersModel, cases: Sequence[Case], tokens: Tensor
) -> dict[str, float]:
    words = [model.tokenizer.decode([token]).strip() for token in tokens.tolist()]
    new = sum(word == case.new_answer for word, case in zip(words, cases, strict=True))
    old = sum(word == case.old_answer for word, case in zip(words, cases, strict=True))
    total = len(cases)
    return {"new": new / total, "old": old / total, "neither": 1 - (new + old) / total}
