"""Keep padding out of an ``explain()`` call: take the real tokens, or warn where they are not.

In a trace the batch that runs is known, and with it which positions are padding. A vector's place
in the batch is known too, unless it was copied: a slice of a block's output is a view of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _compat
from ..core.ragged import misfit, picked
from ..errors import InjectionError, NLAWarning, shown
from ..models.hosts import Positions

At = Positions | Sequence[Positions]
"""``at=``: the real positions of one prompt, or of each prompt of a batch."""


@dataclass(frozen=True)
class Placed:
    """The vectors of real tokens, and what is known of them."""

    vectors: Tensor
    """``[tokens, d_model]``, all prompts in one row."""
    lengths: tuple[int, ...] | None
    """The number of tokens of each prompt; ``None`` for a single `Positions`."""
    tokens: list[str]
    """The token of each vector."""
    positions: list[int]
    """The position of each vector in its prompt."""


def placed(vectors: Tensor, at: Any, tokens: Any, positions: Any) -> Placed:
    """Take the vectors of real tokens out of a batch.

    Args:
        vectors: ``[prompts, seq, d_model]``; for a single `Positions` also ``[seq, d_model]``.
        at: What ``nla.positions(model, prompts)`` returns, or one of these.
        tokens: ``tokens=`` of the call, which `at` already says.
        positions: ``positions=`` of the call, likewise.

    Raises:
        InjectionError: `at` does not fit the vectors, or the batch that is running.
    """
    if tokens is not None or positions is not None:
        raise InjectionError(
            "at= says tokens and positions already; leave tokens= and positions= out."
        )
    one = isinstance(at, Positions)
    places: list[Positions] = [at] if one else list(at) if isinstance(at, list | tuple) else []
    if not places or not all(isinstance(each, Positions) for each in places):
        raise InjectionError(
            f"at={shown(at)}: expected what nla.positions(model, prompts) returns, or one of "
            "its elements."
        )
    batch = vectors[None] if one and vectors.ndim == 2 else vectors
    mask, alone = None, len(places) > 1 or places[0].side == "right"
    running = _compat.running_mask()
    if running is not None:
        first, rows = _compat.running_rows() or (0, len(running))
        alone = False
        if rows == len(places) and tuple(batch.shape[:2]) == (rows, running.shape[1]):
            mask = running[first : first + rows]
    why = misfit(tuple(batch.shape), places, mask=mask, alone=alone)
    if why is not None:
        raise InjectionError(f"{why}: nla.explain(output, at=nla.positions(model, prompts)).")
    return Placed(
        picked(batch, places),
        None if one else tuple(len(each.ids) for each in places),
        [token for each in places for token in each.tokens],
        [number for each in places for number in each.positions],
    )


def check_padding(vectors: Tensor) -> frozenset[int]:
    """Warn if vectors of the running trace were read at padding.

    Returns:
        Their numbers, in the flat list of vectors.
    """
    mask = _compat.running_mask()
    if mask is None or bool(mask.all()):
        return frozenset()
    numbers = _places(vectors, mask.numel(), int(vectors.shape[-1]))
    if numbers is None and tuple(vectors.shape[:-1]) == tuple(mask.shape):
        numbers = torch.arange(mask.numel(), device="cpu")
    if numbers is None:
        return frozenset()
    pads = (~mask.bool()).flatten().cpu()[numbers].nonzero().flatten().tolist()
    if pads:
        warnings.warn(
            f"{len(pads):,} of {len(numbers):,} vectors were read at padding, not at a token of a "
            "prompt: their explanations are of nothing. Leave them out: nla.explain(output, "
            "at=nla.positions(model, prompts)).",
            NLAWarning,
            stacklevel=3,
        )
    return frozenset(pads)


def _places(vectors: Tensor, places: int, width: int) -> Tensor | None:
    """Return which place of the flat batch each vector is a view of, if that can be known."""
    whole = places * width
    if vectors.untyped_storage().nbytes() != whole * vectors.element_size():
        return None
    if vectors.ndim and vectors.stride(-1) != 1:
        return None
    found = torch.tensor(vectors.storage_offset(), device="cpu")
    for size, stride in zip(vectors.shape[:-1], vectors.stride()[:-1], strict=True):
        found = found[..., None] + torch.arange(size, device="cpu") * stride
    found = found.flatten()
    return None if bool((found % width).any()) else found // width
