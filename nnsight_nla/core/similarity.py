"""How close a reconstruction is to a vector: pure tensor maths.

As in the NLA paper, only directions count: both sides are L2-normalised to ``sqrt(d_model)``, so
the mean squared error per element is ``2 * (1 - cosine)``. The fraction of variance explained (FVE)
divides that error by the variance of a named data set of vectors; between models this denominator
ranges from 0.03 to 0.92, so an FVE without it says nothing (see `baseline`, which names it).

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
    """Bring every vector to the L2 norm ``sqrt(d_model)``, in float32; a zero vector stays zero."""
    return unit(vectors) * vectors.shape[-1] ** 0.5


def cosine(
    predicted: Float[Tensor, "*shape d_model"], true: Float[Tensor, "*shape d_model"]
) -> Float[Tensor, "*shape"]:
    """The cosine between each pair of vectors, in float32."""
    return (normalise(predicted) * normalise(true)).mean(dim=-1)


def direction_mse(
    predicted: Float[Tensor, "*shape d_model"], true: Float[Tensor, "*shape d_model"]
) -> Float[Tensor, "*shape"]:
    """The mean squared error per element between normalised vectors: ``2 * (1 - cosine)``."""
    return (normalise(predicted) - normalise(true)).pow(2).mean(dim=-1)


def fve(mse: Float[Tensor, "*shape"], denominator: float) -> Float[Tensor, "*shape"]:
    """The fraction of variance explained: ``1 - mse / denominator``."""
    return 1 - mse / denominator
