"""The rows of one batch: their prompts, and the vectors that are written into them.

All prompts of a batch have the same number of tokens, so there is no padding and no mask. A
verbalizer has one prompt. Those of an oracle differ: questions of equal length, about equally many
vectors, are one batch::

    batch = Batch.of([prompt] * len(vectors), vectors, given)
    write_slots(hidden, batch.vectors, batch.written, injection)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..checkpoint.prompt import Prompt

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Rows that run in one forward pass."""

    ids: Int[Tensor, "rows seq"]
    """The token ids of each row's prompt."""
    vectors: Float[Tensor, "rows slots d_model"]
    """The raw vectors of each row's slots, float32, on the CPU."""
    sites: Int[Tensor, "rows slots"]
    """The position of each slot."""
    given: Bool[Tensor, " rows"]
    """Which rows get their vectors; the others are the null control."""

    @staticmethod
    def of(
        prompts: Sequence[Prompt],
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
    ) -> Batch:
        """Return the batch of these rows.

        Args:
            prompts: The prompt of each row, all of one length.
            vectors: One vector per row, which all slots of its prompt get, or one per slot.
            given: Which rows get their vectors.
        """
        sites = torch.tensor([each.sites for each in prompts], device="cpu")
        held = vectors.detach().float().cpu()
        if held.ndim == 2:
            held = held[:, None].expand(-1, sites.shape[1], -1)
        ids = torch.tensor([each.ids for each in prompts], device="cpu")
        return Batch(ids, held, sites, given.cpu())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Sequence[int]) -> Batch:
        return Batch(self.ids[rows], self.vectors[rows], self.sites[rows], self.given[rows])

    def followed_by(self, ids: Sequence[int]) -> Batch:
        """Return the batch with these tokens after each prompt."""
        tail = torch.tensor(ids, dtype=self.ids.dtype, device="cpu").expand(len(self), -1)
        return replace(self, ids=torch.cat([self.ids, tail], dim=1))

    @property
    def written(self) -> Int[Tensor, "rows slots"]:
        """Where each vector is written: `sites`, and -1 in a row that gets none."""
        return torch.where(self.given[:, None], self.sites, -1)

    @property
    def shared(self) -> int:
        """The number of tokens at the beginning that are equal in all rows, before any slot."""
        equal = (self.ids == self.ids[:1]).all(dim=0).long().cumprod(dim=0).sum()
        return min(int(equal), int(self.sites.min()))

    def different(self) -> list[int]:
        """Return, for each row, the first row with the same prompt and the same vectors."""
        first: dict[tuple[bytes, bytes | None], int] = {}
        return [
            first.setdefault((ids.numpy().tobytes(), held.numpy().tobytes() if has else None), row)
            for row, (ids, held, has) in enumerate(
                zip(self.ids, self.vectors.contiguous(), self.given.tolist(), strict=True)
            )
        ]
