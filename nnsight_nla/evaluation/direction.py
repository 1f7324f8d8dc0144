"""Turn two texts into a steering vector that changes the explanation of a residual.

The reconstructor turns both texts into vectors; their difference, scaled to the residual's norm,
moves a residual from one meaning to the other. A residual explained as "about Paris" plus
``direction(to="about Rome", away_from="about Paris")`` is explained as "about Rome"::

    direction = nla.direction(to=thought.text.replace("Paris", "Rome"), away_from=thought)
    with model.trace("People in Paris speak"):
        nla.layer(model).output[:, -1] += direction

It takes the device and dtype of the residual that it is added to (see `wire.Direction`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.injection import unit
from ..core.numeric import is_real
from ..errors import ReconstructionError, shown
from ..explanation.handle import Explanation
from ..remote import wire

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..core.baseline import Baseline


def direction(
    to: Float[Tensor, "*to d_model"],
    away_from: Float[Tensor, "*away d_model"] | None,
    norm: float | Float[Tensor, "*away"],
) -> wire.Direction:
    """Return the step from one reconstruction to another, scaled to a residual's norm.

    Args:
        to: The reconstruction of the text to move to.
        away_from: The reconstruction of the text to leave; ``None`` for a step of `to` alone.
        norm: The L2 norm of a residual: one number, or one per vector.

    Returns:
        ``norm * (unit(to) - unit(away_from))``, of their common shape, float32.

    Raises:
        ReconstructionError: The shapes differ, both texts have the same reconstruction, or a norm
            is not a positive, finite number.
    """
    norms = torch.as_tensor(norm, dtype=torch.float32, device="cpu")
    if not bool((norms.isfinite() & (norms > 0)).all()):
        raise ReconstructionError(
            f"direction() needs a positive, finite residual norm, got {norms.tolist()!r:.80}. "
            "Leave out the vectors that thought.errors names, or pass norm=... for all."
        )
    start = torch.zeros_like(to) if away_from is None else unit(away_from)
    try:
        step = unit(to) - start
        scaled = norms[..., None] * step
    except RuntimeError as error:
        shape = () if away_from is None else tuple(away_from.shape[:-1])
        raise ReconstructionError(
            f"to has shape {tuple(to.shape[:-1])} and away_from {shape}; give one text for all, or "
            "one for each."
        ) from error
    if bool((step.norm(dim=-1) < 1e-6).any()):
        raise ReconstructionError(
            "to and away_from reconstruct to the same vector, so there is no direction between "
            "them. Change the wording of one."
        )
    return wire.direction(scaled)


def residual_norm(
    norm: object, away_from: object, baseline: Baseline | None
) -> float | Float[Tensor, "*away"]:
    """Return the L2 norm of a residual: the one given, that of a handle, or the baseline's mean.

    Args:
        norm: What the caller said.
        away_from: The text or the handle to leave.
        baseline: The NLA's.

    Raises:
        ReconstructionError: None of the three has one, or `norm` is not a positive number.
    """
    if norm is not None and not (is_real(norm) and norm > 0):
        raise ReconstructionError(
            f"norm={shown(norm)}: expected a positive, finite number, the L2 norm of a residual, "
            "for example norm=vectors.norm(dim=-1).mean().item()."
        )
    if norm is None and isinstance(away_from, Explanation):
        return away_from.vectors.float().norm(dim=-1).cpu()
    length = norm if norm is not None else baseline.norm if baseline else None
    if length is None:
        raise ReconstructionError(
            "direction() needs a residual norm: pass a handle (away_from=thought), norm=..., or a "
            "baseline that has one: NLA(..., baseline=Baseline.from_vectors(vectors, name=...))."
        )
    return length
