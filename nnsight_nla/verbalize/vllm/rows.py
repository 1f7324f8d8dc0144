"""Write a verbalizer's prompt as rows of ``prompt_embeds`` that say themselves what they are.

vLLM takes a prompt as embeddings, ``[tokens, d_model]``. A row here is one of three messages, which
the model class turns into what the model reads; every other row is an embedding and stays as it is:

* *token*: the id of a token. The model looks up its own embedding.
* *vector*: the vector, at a marker. The model writes it at the injection site.
* *null*: a marker at which nothing is written, the null control.

The largest entry of a row says which: a power of 2 that float16, bfloat16 and float32 have exactly,
and that no embedding reaches. So a request needs neither the embedding matrix nor a fixed place of
the marker, and ordinary requests to the same engine are not touched. vLLM's prefix cache keys each
block of a prompt by the bytes of its rows: the part before the marker is shared by all vectors, and
the part with the vector is found only by a request with the same vector.

The vector travels divided by its largest entry, which does not change its direction (see
`injection.unit`) and cannot overflow.

>>> import torch
>>> rows = encoded([5, 7], [1], torch.tensor([3.0, -4.0, 0.0, 1.0]), torch.float32)
>>> kinds = decoded(rows)
>>> kinds.token.tolist(), kinds.vector.tolist(), kinds.ids.tolist()
([True, False], [False, True], [5, 0])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

NULL, TOKEN, VECTOR = 2.0**13, 2.0**14, 2.0**15
_BASE, _DIGITS = 128, 3
LEAST_WIDTH = _DIGITS + 1
"""The least d_model that has room for a token's id."""


@dataclass(frozen=True)
class Kinds:
    """What each row of a batch is; a row that is none of the three is an embedding."""

    token: Bool[Tensor, " rows"]
    """Rows that name a token."""
    vector: Bool[Tensor, " rows"]
    """Markers with a vector."""
    null: Bool[Tensor, " rows"]
    """Markers without one."""
    ids: Int[Tensor, " rows"]
    """The ids of the tokens; 0 in other rows."""


def encoded(
    ids: Sequence[int],
    sites: Sequence[int],
    vectors: Float[Tensor, " d_model"] | Float[Tensor, "sites d_model"] | None,
    dtype: torch.dtype,
    d_model: int = 0,
) -> Float[Tensor, "tokens d_model"]:
    """Return the rows of one prompt.

    Args:
        ids: The prompt's token ids.
        sites: The positions of its markers.
        vectors: One for every marker, or one for each; ``None`` for the null control.
        dtype: The dtype that the model computes in.
        d_model: The width, for the null control.
    """
    width = d_model if vectors is None else vectors.shape[-1]
    rows = named(torch.tensor(ids, dtype=torch.int64, device="cpu"), width, torch.float32)
    marker = torch.zeros(width, dtype=torch.float32, device="cpu")
    marker[0] = NULL
    if vectors is not None:
        wide = vectors.detach().float().cpu()
        marker = VECTOR * (wide / wide.abs().amax(dim=-1, keepdim=True))
    rows[list(sites)] = marker
    # A sparse tensor has no negative zeros, and the names of vectors are of their bytes.
    return rows.to(dtype) + 0.0


def named(ids: Int[Tensor, " rows"], d_model: int, dtype: torch.dtype) -> Tensor:
    """Return rows ``[rows, d_model]`` that name tokens, on the device of `ids`."""
    rows = torch.zeros(len(ids), d_model, dtype=dtype, device=ids.device)
    rows[:, 0], left = TOKEN, ids
    for digit in range(1, _DIGITS + 1):
        rows[:, digit], left = (left % _BASE).to(dtype), left // _BASE
    return rows


def decoded(rows: Float[Tensor, "rows d_model"]) -> Kinds:
    """Return what each row is; without synchronising with the device."""
    peak, first = rows.abs().amax(dim=-1), rows[:, 0]
    token = (peak == TOKEN) & (first == TOKEN)
    ids = torch.zeros_like(first, dtype=torch.int64)
    for digit in range(_DIGITS, 0, -1):
        ids = _BASE * ids + rows[:, digit].long()
    null = (peak == NULL) & (first == NULL)
    return Kinds(token, peak == VECTOR, null, torch.where(token, ids, torch.zeros_like(ids)))


def keys(rows: Float[Tensor, "rows d_model"]) -> Int[Tensor, " rows"]:
    """Return a 64-bit hash of the bytes of each row: the name of a vector in the receipts."""
    size = {2: torch.int16, 4: torch.int32}[rows.dtype.itemsize]
    # Integer sums are exact in every order, so they are equal on every device.
    return (rows.contiguous().view(size).long() * _weights(rows.shape[-1], rows.device)).sum(-1)


@lru_cache(maxsize=8)
def _weights(width: int, device: torch.device) -> Tensor:
    drawn = np.random.PCG64(0).random_raw(width).view(np.int64)
    return torch.tensor(drawn, dtype=torch.int64, device=device)
