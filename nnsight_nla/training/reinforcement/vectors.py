"""Hand out the training vectors, in an order that depends on the seed alone.

The vectors for step n are known without the steps before it, so a resumed training sees those that
it would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor

from ...core.injection import unusable
from ..published import Published
from ..rows import TrainingError, mapped


class Vectors:
    """The vectors of a file, shuffled anew in each pass over them."""

    def __init__(self, source: Published, d_model: int, seed: int) -> None:
        """Read the vectors; they are mapped into memory, not kept in it.

        Raises:
            TrainingError: There are none, or one has another width, is zero or not finite.
        """
        if len(source) == 0:
            raise TrainingError(f"{source.file} has no rows to train on.")
        self.all = mapped(_checked(source, d_model), d_model, source.scratch)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.all)

    def of_step(self, step: int, count: int) -> Float[Tensor, "count d_model"]:
        """Return the vectors of a step, counted from 0."""
        first = step * count
        passes = range(first // len(self), (first + count - 1) // len(self) + 1)
        order = torch.cat([self._order(number) for number in passes])
        start = first - passes[0] * len(self)
        return self.all[order[start : start + count]].clone()

    def _order(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        return torch.randperm(len(self), generator=generator, device="cpu")


def _checked(source: Published, d_model: int) -> Iterator[Tensor]:
    """Read the vectors, and raise on one that cannot be written."""
    numbers = iter(source.numbers())
    for part in source.vectors(d_model):
        bad = unusable(part)
        for number, row in enumerate(islice(numbers, len(part))):
            if number in bad:
                raise TrainingError(
                    f"{source.file}, row {row}: activation_vector {bad[number]}. Remove the row."
                )
        yield part
