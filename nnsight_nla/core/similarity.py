"""Measure how close a reconstruction is to a vector.

As in the NLA paper, only directions count: both vectors are L2-normalised to ``sqrt(d_model)``, so
the mean squared error per entry is ``2 * (1 - cosine)``. The fraction of variance explained divides
that error by a `Baseline`.

>>> import torch
>>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
>>> round(cosine(a, b).item(), 4)
0.7071
>>> round(direction_mse(a, b).item(), 4)
0.5858
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from .injection import unit

if TYPE_CHECKING:
    from jaxtyping import Float


def normalise(vectors: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape d_model"]:
    """Scale each vector to the L2 norm ``sqrt(d_model)``, in float32; a zero vector stays zero."""
    return unit(vectors) * vectors.shape[-1] ** 0.5


def cosine(
    predicted: Float[Tensor, "*shape d_model"], true: Float[Tensor, "*shape d_model"]
) -> Float[Tensor, "*shape"]:
    """Return the cosine of each pair of vectors, in float32."""
    return (normalise(predicted) * normalise(true)).mean(dim=-1)


def direction_mse(
    predicted: Float[Tensor, "*shape d_model"], true: Float[Tensor, "*shape d_model"]
) -> Float[Tensor, "*shape"]:
    """Return the mean squared error per entry of the normalised vectors: ``2 * (1 - cosine)``."""
    return (normalise(predicted) - normalise(true)).pow(2).mean(dim=-1)
