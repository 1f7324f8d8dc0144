"""Take the vectors of real tokens out of a padded batch: ``explain(output, at=positions)``.

The prompts of a batch have unequal numbers of tokens, so what is left is *ragged*: the vectors of
all prompts in one row, and how many belong to each.

This module is shipped with remote requests as source, so it imports nothing of this package.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch


def misfit(
    shape: Sequence[int], places: Sequence[Any], *, mask: Any = None, alone: bool = False
) -> str | None:
    """Return why positions do not fit a batch of vectors, in a sentence; ``None`` if they do.

    Args:
        shape: The shape of the vectors, which should be ``[prompts, seq, d_model]``.
        places: Each prompt's ``ids`` and ``slice``.
        mask: ``[prompts, seq]``, the attention mask of the batch, if it is known.
        alone: Whether the batch holds these prompts only, so that the longest fills it.
    """
    if len(shape) != 3 or shape[0] != len(places):
        return (
            f"at= is of {len(places)} prompts, and the vectors have shape {list(shape)}: expected "
            f"[{len(places)}, seq, d_model], such as nla.layer(model).output of the same prompts"
        )
    width = shape[1]
    longest = max((len(each.ids) for each in places), default=0)
    if longest > width or (alone and longest < width):
        return (
            f"The longest prompt of at= has {longest} tokens, and the vectors {width} positions. "
            "Take both from the same prompts, with the same padding and beginning (BOS)"
        )
    for row, each in enumerate(places):
        real = None if mask is None else mask[row].nonzero().flatten().tolist()
        if real is not None and real != list(range(*each.slice.indices(width))):
            return (
                f"at= says that prompt {row} has {len(each.ids)} tokens, at {_span(each, width)}, "
                f"and the running batch has {len(real)}{f', from {real[0]} on' if real else ''}. "
                "Take both from the same prompts, with the same padding"
            )
    return None


def picked(vectors: Any, places: Sequence[Any]) -> Any:
    """Return the vectors of the real tokens of all prompts, ``[tokens, d_model]``."""
    parts = [vectors[row, each.slice] for row, each in enumerate(places)]
    return torch.cat(parts) if parts else vectors.reshape(0, vectors.shape[-1])


def ranges(lengths: Iterable[int]) -> list[range]:
    """Return the rows of each prompt.

    >>> ranges([2, 0, 3])
    [range(0, 2), range(2, 2), range(2, 5)]
    """
    found, start = [], 0
    for length in lengths:
        found.append(range(start, start + length))
        start += length
    return found


def _span(place: Any, width: int) -> str:
    start, stop, _ = place.slice.indices(width)
    return f"{start} to {stop - 1}"
