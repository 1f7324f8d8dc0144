"""Measure how often the trust labels are right, which only a world with known truth allows.

A label that is always ``high`` would say nothing, so the rows are of several kinds: the held-out
vectors as they are, the same with noise of 0.5 to 2 times their norm, the mean of two of them, and
texts sampled at temperature 1. The table says for each grade how many rows got it, and what share
of them named the true subject, had each slot right on average, and had all six slots right. A label
is useful if these shares fall from grade to grade.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from nnsight_nla import NLA, Sampling
from nnsight_nla.tiny.examples import Examples
from nnsight_nla.tiny.explanations import SLOTS, Slots, parse

GRADES = ("strong", "partial", "weak", "none")
NOISE = (0.5, 1.0, 1.5, 2.0)
"""The norm of the noise, as a multiple of the norm of the vector that it is added to."""


def trust_reliability(
    nla: NLA, examples: Examples, *, seed: int = 0
) -> dict[str, dict[str, float | int]]:
    """Label rows whose truth is known, and count how often each grade is right.

    Args:
        nla: The pair.
        examples: Vectors and their gold explanations.
        seed: The seed of the noise.

    Returns:
        For each grade, the number of ``rows`` and the shares ``subject``, ``slots`` and ``all``.
    """
    true = [parse(text) for text in examples.explanations]
    graded: list[tuple[str, Slots, Slots]] = []
    for vectors, sampling in _kinds(examples.vectors, seed):
        thoughts = nla.explain(vectors, sampling=sampling)
        said = [parse(text) for text in thoughts.text]
        graded += zip([label.grade for label in thoughts.trust], said, true, strict=True)
    return {
        grade: _shares([(said, truth) for found, said, truth in graded if found == grade])
        for grade in GRADES
    }


def _kinds(
    vectors: Float[Tensor, "rows d_model"], seed: int
) -> Iterator[tuple[Tensor, Sampling | None]]:
    """Yield each kind of row: its vectors, and how its texts are sampled."""
    yield vectors, None
    noise = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(seed))
    noise = noise / noise.norm(dim=-1, keepdim=True) * vectors.norm(dim=-1, keepdim=True)
    for size in NOISE:
        yield vectors + size * noise, None
    # A shift by half of the rows gives another document's vector.
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
