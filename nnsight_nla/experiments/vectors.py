"""Vectors that a caller gives: checked to have a direction, and named for `resume=`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import ExperimentError

if TYPE_CHECKING:
    from jaxtyping import Float


def plain(vector: Any, width: int, name: str) -> Float[Tensor, " width"]:
    """A vector as an ordinary float32 tensor on the CPU.

    Args:
        vector: What was passed: any tensor, or what ``nla.direction`` returns.
        width: The width of the site that it is written at.
        name: What the argument is called.

    Raises:
        ExperimentError: It is no vector of this width, or zero, NaN or infinite.
    """
    if not isinstance(vector, Tensor) or tuple(vector.shape) != (width,):
        got = list(vector.shape) if isinstance(vector, Tensor) else type(vector).__name__
        raise ExperimentError(f"{name} is {got}: expected a tensor of shape [{width}].")
    values = vector.detach().as_subclass(Tensor).float().cpu().clone()
    if not bool(values.isfinite().all()) or not bool(values.any()):
        raise ExperimentError(f"{name} is zero, NaN or infinite: it has no direction.")
    return values


def digest(vector: Float[Tensor, " width"]) -> str:
    """A vector's name, to tell whether a sweep that goes on is the same."""
    return hashlib.blake2b(vector.contiguous().numpy().tobytes(), digest_size=8).hexdigest()
