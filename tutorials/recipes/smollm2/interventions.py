"""Measure what patching, steering and ablation do to SmolLM2's answer and to the explanation.

The prompts ask for something about a country; a country's answer is the target's own likeliest
token. For pairs of countries with different answers::

    intervention_rates(model, nla)["patch"]["block 10, country"]    # {'answer': ..., ...}

* **Patching** writes the donor's residual into the other prompt. Does the answer become the
  donor's, and does the explanation of the last residual say it as the next token?
* **Steering** edits the line ``Next:`` of an explanation, and adds ``nla.direction`` of the edit to
  the residual at block K. The control is a random direction of the same norm.
* **Ablation** sets the country's residual to a mean. Does the explanation still say the answer?
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from nnsight import TransformersModel
from torch import Tensor

from nnsight_nla import NLA, Explanation
from nnsight_nla.experiments import ablate, logit_difference, patch
from nnsight_nla.smollm2.explanations import explanation, parse

FORMS = (
    "The capital of {} is",
    "The capital of {} is the city of",
    "The language that most people in {} speak is",
    "If you travel to {}, you should visit the city of",
    "The president of {} gave a speech in the city of",
)
COUNTRIES = (
    "France", "Italy", "Germany", "Spain", "Japan", "China", "Russia", "Egypt", "India", "Greece",
    "Poland", "Sweden", "Norway", "Turkey", "Mexico", "Canada", "Brazil", "Portugal", "Iran",
    "Kenya", "Cuba", "Chile", "Peru", "Austria", "Hungary", "Finland", "Denmark", "Ireland",
)  # fmt: skip
LAYERS = (0, 5, 10, 15, 20, 22)
"""The blocks that are patched at the country's position."""
_REFERENCES = 8


@dataclass(frozen=True)
class Asked:
    """A prompt, and the token that the target finds likeliest after it."""

    prompt: str
    """The prompt."""
    country: int
    """The position of the country."""
    answer: str
    """The likeliest next token, with its space."""


def intervention_rates(
    model: TransformersModel, nla: NLA, *, pairs: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Patch, steer and ablate, and count whose answer and whose explanation results.

    Args:
        model: The target.
        nla: Its NLA.
        pairs: How many pairs of prompts.
        seed: The seed that the pairs are drawn with.

    Returns:
        ``pairs``; ``patch`` and ``steer``, each a mapping from what was done to shares; ``ablate``.
    """
    drawn = draw(model, nla, pairs, seed)
    sweeps = [
        patch(
            model,
            nla,
            donor.prompt,
            other.prompt,
            layers=[*LAYERS, nla.checkpoint.layer],
            positions=[other.country, -1],
            metric=logit_difference(donor.answer, other.answer),
        )
        for donor, other in drawn
    ]
    references = [donor.prompt for donor, _ in drawn[:_REFERENCES]]
    ablations = [
        ablate(
            model,
            nla,
            other.prompt,
            layers=0,
            positions=other.country,
            metric=logit_difference(other.answer, donor.answer),
            method="mean",
            reference=references,
            over="tokens",
        )
        for donor, other in drawn
    ]
    nla.resolve()  # all texts together, in full batches
    found: dict[str, list[tuple[bool, bool]]] = {"nothing": []}
    for (donor, other), sweep in zip(drawn, sweeps, strict=True):
        rows = sweep.rows()
        before = rows[0]["before"]
        found["nothing"].append((False, says(before, donor.answer)))
        for row in rows:
            at = "country" if row["position"] == other.country else "last position"
            if (at == "country") != (row["layer"] in LAYERS):
                continue
            outcome = row["answer"] == donor.answer, says(row["after"], donor.answer)
            found.setdefault(f"block {row['layer']}, {at}", []).append(outcome)
    ablated = [
        (says(row["before"], other.answer), says(row["after"], other.answer))
        for (_, other), sweep in zip(drawn, ablations, strict=True)
        for row in sweep.rows()
    ]
    return {
        "pairs": len(drawn),
        "patch": {
            name: {
                "answer": _share(answer for answer, _ in outcomes),
                "explained": _share(told for _, told in outcomes),
                "both": _share(answer and told for answer, told in outcomes),
            }
            for name, outcomes in found.items()
        },
        "steer": _steering(model, nla, drawn, seed),
        "ablate": {
            "before": _share(before for before, _ in ablated),
            "after": _share(after for _, after in ablated),
        },
    }


def draw(model: TransformersModel, nla: NLA, count: int, seed: int) -> list[tuple[Asked, Asked]]:
    """Draw pairs of a donor and another prompt of one form, in which the target answers differ."""
    by_form = [_asked(model, nla, form) for form in FORMS]
    possible = [
        (a, b)
        for asked in by_form
        for a, b in permutations(asked, 2)
        if a.answer != b.answer and a.country == b.country
    ]
    return random.Random(seed).sample(possible, min(count, len(possible)))


def _asked(model: TransformersModel, nla: NLA, form: str) -> list[Asked]:
    """Ask one question about every country whose name is one token."""
    prompts = [form.format(country) for country in COUNTRIES]
    spans = nla.positions(model, prompts)
    shortest = min(len(span.ids) for span in spans)
    kept = [(p, s) for p, s in zip(prompts, spans, strict=True) if len(s.ids) == shortest]
    with torch.no_grad(), model.trace([prompt for prompt, _ in kept]):
        tokens = model.lm_head.output[:, -1].argmax(dim=-1).save()
    country = next(i for i, token in enumerate(kept[0][1].tokens) if token.strip() in COUNTRIES)
    answers = [model.tokenizer.decode([token]) for token in tokens.tolist()]
    names = [answer.strip() for answer in answers]
    return [
        Asked(prompt, country, answer)
        for (prompt, _), answer, name in zip(kept, answers, names, strict=True)
        if name[:1].isupper() and name not in prompt  # A name, and not that of the country.
    ]


def says(text: str | None, answer: str) -> bool:
    """Return whether an explanation says `answer` as the likeliest next token."""
    slots = parse(text)
    return slots is not None and slots.next[0] == answer.strip()


def _steering(
    model: TransformersModel, nla: NLA, drawn: Sequence[tuple[Asked, Asked]], seed: int
) -> dict[str, dict[str, float]]:
    """Steer each pair's other prompt to the donor's answer, by an edited explanation.

    nnsight pads prompts on the left, so the last position of each is at -1.
    """
    prompts = [other.prompt for _, other in drawn]
    with torch.no_grad(), model.trace(prompts):
        thoughts = nla.explain(nla.layer(model).output[:, -1])
    step = _directions(nla, thoughts, [donor.answer for donor, _ in drawn])
    noise = torch.randn(step.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise / noise.norm(dim=-1, keepdim=True) * step.norm(dim=-1, keepdim=True)
    rates: dict[str, dict[str, float]] = {}
    for name, added in (
        ("nothing", 0 * step),
        ("edited explanation", step),
        ("edited explanation, twice", 2 * step),
        ("random direction", noise),
        ("random direction, twice", 2 * noise),
    ):
        with torch.no_grad(), model.trace(prompts):
            nla.layer(model).output[:, -1] += added
            tokens = model.lm_head.output[:, -1].argmax(dim=-1).save()
        answers = [model.tokenizer.decode([token]) for token in tokens.tolist()]
        new = _share(a == donor.answer for a, (donor, _) in zip(answers, drawn, strict=True))
        old = _share(a == other.answer for a, (_, other) in zip(answers, drawn, strict=True))
        rates[name] = {"new": new, "old": old, "neither": 1 - new - old}
    return rates


def _directions(nla: NLA, thoughts: Explanation, answers: Sequence[str]) -> Tensor:
    """Return each row's direction to its edited explanation; zero where there is none to edit."""
    directions = torch.zeros(thoughts.vectors.shape)
    edited: dict[int, str] = {}
    for row, (text, answer) in enumerate(zip(thoughts.text, answers, strict=True)):
        slots = parse(text)
        if slots is not None:
            edited[row] = explanation(replace(slots, next=(answer.strip(), *slots.next[1:])))
    if edited:
        chosen = list(edited)
        step = nla.direction(to=list(edited.values()), away_from=thoughts[chosen])
        directions[chosen] = step.as_subclass(Tensor)
    return directions


def _share(values: Iterable[bool]) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)
