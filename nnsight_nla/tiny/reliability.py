"""How often a trust label is right: the one place where labels can be held against the truth.

A label that always says ``high`` is worth nothing, so the rows are of many kinds: the held-out
vectors as they are, the same with noise of half to twice their own length, the mean of two of
them, and texts drawn at temperature 1. For each grade the table says how many rows got it, and
what share of them named the true subject, had each slot right on average, and were right in all
six. A label is of use when that share falls from grade to grade.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.sampling import Sampling
from .examples import Examples
from .explanations import SLOTS, Slots, parse

GRADES = ("high", "medium", "low", "none")
NOISE = (0.5, 1.0, 1.5, 2.0)
"""Lengths of the noise, in lengths of the vector it is added to."""

Reliability = dict[str, dict[str, float | int]]
"""Grade to the number of ``rows``, and the shares ``subject``, ``slots`` and ``all``."""


def reliability(nla: Any, examples: Examples, *, seed: int = 0) -> Reliability:
    """Label rows whose truth is known, and count how often each grade is right.

    Args:
        nla: The pair.
        examples: Vectors and their gold explanations.
        seed: Of the noise.
    """
    true = [parse(text) for text in examples.explanations]
    judged = []
    for vectors, sampling in _kinds(examples.vectors, seed):
        thought = nla.explain(vectors, sampling=sampling)
        said = [parse(text) for text in thought.text]
        judged += zip([label.grade for label in thought.trust], said, true, strict=True)
    return {
        grade: _shares([(said, truth) for found, said, truth in judged if found == grade])
        for grade in GRADES
    }


def _kinds(
    vectors: Float[Tensor, "rows d_model"], seed: int
) -> Iterator[tuple[Tensor, Sampling | None]]:
    yield vectors, None
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise / noise.norm(dim=-1, keepdim=True) * vectors.norm(dim=-1, keepdim=True)
    for size in NOISE:
        yield vectors + size * noise, None
    # Half the rows away: another document's vector.
    yield (vectors + vectors.roll(len(vectors) // 2, dims=0)) / 2, None
    yield vectors, Sampling(temperature=1.0)


def _shares(rows: Sequence[tuple[Slots, Slots]]) -> dict[str, float | int]:
    right = [[getattr(a, slot) == getattr(b, slot) for slot in SLOTS] for a, b in rows]
    count = max(len(rows), 1)
    return {
        "rows": len(rows),
        "subject": sum(each[0] for each in right) / count,
        "slots": sum(map(sum, right)) / (count * len(SLOTS)),
        "all": sum(map(all, right)) / count,
    }
