"""Whether explanations follow interventions: patch one subject into another and count what flips.

Two prompts differ in the subject alone (``People in Paris speak``, ``People in Tokyo speak``).
The residual of the first is written into the second at one block and one position, and three
things may flip to the first: the target's prediction, and the subject and the next word that the
verbalizer names at K, at the last position. An explanation that only fits the text would not
flip; one that follows the computation flips exactly where the prediction does.

In this target the fact leaves the subject's position early: a patch there flips everything at block
0, some of it at block 1 and nothing at K, where the last position holds it all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .documents import PUNCTUATION
from .explanations import parse
from .facts import SUBJECTS
from .target import K

Flips = dict[str, float]
"""The share of pairs in which ``prediction``, ``subject`` and ``next`` became the source's."""

# A kind of subject, the relation, and a prompt that its answer completes.
_PROMPTS = (
    ("city", "language", "People in {S} speak"),
    ("city", "capital", "{S} is the capital of"),
    ("country", "food", "Cooks in {S} make"),
    ("country", "currency", "Shops in {S} take the"),
    ("animal", "home", "The {S} lives in the"),
    ("animal", "diet", "What a lovely day! The {S} likes to eat"),
    ("job", "workplace", "The {S} works in the"),
    ("job", "product", "The day is sad. The {S} makes"),
)
_SITES = (
    ("subject position, block 0", 0, "subject"),
    ("subject position, block 1", 1, "subject"),
    ("subject position, block K", K, "subject"),
    ("last position, block K", K, "last"),
)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of prompts of one form, and what each should end in."""

    sources: list[str]
    targets: list[str]
    source_subjects: list[str]
    source_answers: list[str]
    subject_position: int
    length: int


def flip_rates(model: Any, nla: Any, *, pairs: int = 20, seed: int = 0) -> dict[str, Flips]:
    """Patch at every site and count.

    Args:
        model: The target.
        nla: Its NLA.
        pairs: How many pairs of subjects for each of the eight prompts.
        seed: Of the pairs.

    Returns:
        For each site, and for ``no patch`` (which should flip nothing), the shares that flipped.
    """
    rng = random.Random(seed)
    forms = [_draw(rng, kind, relation, prompt, pairs) for kind, relation, prompt in _PROMPTS]
    rates = {"no patch": _mean([_flips(model, nla, form, None, "last") for form in forms])}
    for name, block, where in _SITES:
        rates[name] = _mean([_flips(model, nla, form, block, where) for form in forms])
    return rates


def _draw(rng: random.Random, kind: str, relation: str, prompt: str, pairs: int) -> _Pairs:
    subjects = [subject for subject in SUBJECTS.values() if subject.kind == kind]
    drawn: list[tuple[Any, Any]] = []
    while len(drawn) < pairs:
        source, target = rng.sample(subjects, 2)
        if source.facts[relation] != target.facts[relation]:
            drawn.append((source, target))
    # Every word and every sign is one token.
    words = "".join(f" {sign}" if sign in PUNCTUATION else sign for sign in prompt).split()
    return _Pairs(
        [prompt.replace("{S}", source.name) for source, _ in drawn],
        [prompt.replace("{S}", target.name) for _, target in drawn],
        [source.name for source, _ in drawn],
        [source.facts[relation] for source, _ in drawn],
        words.index("{S}"),
        len(words),
    )


def _flips(model: Any, nla: Any, pairs: _Pairs, block: int | None, where: str) -> Flips:
    """Write the sources' residual at `block` into the targets; nothing where it is ``None``."""
    position = pairs.subject_position if where == "subject" else pairs.length - 1
    layer = model.model.layers[K if block is None else block]
    with torch.no_grad(), model.trace(pairs.sources):
        source = layer.output[:, position].detach().save()
    with torch.no_grad(), model.trace(pairs.targets):
        if block is not None:
            patched = layer.output.clone()
            patched[:, position] = source
            layer.output = patched
        thought = nla.explain(nla.layer(model).output[:, -1])
        token = model.lm_head.output[:, -1].argmax(dim=-1).save()
    slots = [parse(text) for text in thought.text]
    return {
        "prediction": _share(map(model.tokenizer.decode, token.tolist()), pairs.source_answers),
        "subject": _share((slot.subject for slot in slots), pairs.source_subjects),
        "next": _share((slot.next for slot in slots), pairs.source_answers),
    }


def _share(found: Any, expected: Sequence[str]) -> float:
    return sum((a or "").strip() == b for a, b in zip(found, expected, strict=True)) / len(expected)


def _mean(flips: Sequence[Flips]) -> Flips:
    return {key: sum(each[key] for each in flips) / len(flips) for key in flips[0]}
