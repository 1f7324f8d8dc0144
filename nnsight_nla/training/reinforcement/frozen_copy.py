"""Keep the values that some weights had, and put them back for a while.

The reference of the KL divergence is the verbalizer of the warm start, and the reconstructor that
judges is that of the warm start too. Neither needs a second model: only what is trained differs, so
a copy of that is enough, under adapters a few megabytes::

    start = FrozenCopy(trained)
    ...                      # training changes the weights
    with start.in_place():   # the model of the start, in the same modules
        ...
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch
from torch import Tensor


class FrozenCopy:
    """The values of some tensors at the time when it was made."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        """Copy the values; the tensors themselves are kept too."""
        self._live = list(tensors)
        self._values = [each.detach().clone() for each in self._live]

    @contextmanager
    def in_place(self) -> Generator[None, None, None]:
        """Give the tensors their old values while the block runs, which needs no gradients.

        The values are copied rather than swapped, so that whoever shares the memory sees them.
        """
        now = [each.detach().clone() for each in self._live]
        self._write(self._values)
        try:
            yield
        finally:
            self._write(now)

    def largest_change(self) -> float:
        """Return the largest change of any entry since then; NaN if there is one now."""
        changes = [
            (live.detach() - value).abs().max().float()
            for live, value in zip(self._live, self._values, strict=True)
            if value.numel()
        ]
        return float(torch.stack([each.cpu() for each in changes]).max()) if changes else 0.0

    def _write(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for live, value in zip(self._live, values, strict=True):
                live.copy_(value)
