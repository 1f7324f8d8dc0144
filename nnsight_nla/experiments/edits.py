"""Read and write rows of a batch inside a trace, in the order of the forward pass.

A batch of a sweep holds the same prompt in every row, and each row is one cell: it is written at
its own place. The block of a trace is shipped as source where it runs remotely, and so is this
module. So it names nothing of ours, only envoys, tensors and numbers, and imports torch only.

A *step* is ``(action, envoy, where, start, stop, rows, positions, vectors)``:

* ``action``: ``"read"`` the rows' values; ``"write"`` `vectors` in their place; ``"add"`` them;
  ``"project"`` out the unit vectors.
* ``where``: the envoy's ``"input"`` or ``"output"``; columns ``start`` to ``stop`` of it.
* ``rows``, ``positions``: ``[n]``, the places; ``vectors``: ``[n, width]``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def perform(steps: list[Any]) -> list[Tensor]:
    """Perform the steps; return what the ``"read"`` ones found, each ``[n, width]``."""
    found = []
    for action, envoy, where, start, stop, rows, positions, vectors in steps:
        value = envoy.input if where == "input" else envoy.output
        tensor = value[0] if isinstance(value, tuple) else value
        rows, positions = rows.to(tensor.device), positions.to(tensor.device)
        here = tensor[rows, positions, start:stop]
        if action == "read":
            found.append(here.detach().clone())
            continue
        new = changed(action, here, vectors.to(tensor.device))
        after = tensor.clone()
        after[rows, positions, start:stop] = new.to(tensor.dtype)
        if where == "input":
            envoy.input = after
        else:
            envoy.output = (after, *value[1:]) if isinstance(value, tuple) else after
    return found


def changed(action: str, here: Tensor, vectors: Tensor) -> Tensor:
    """Return what replaces `here`; additions and projections are computed in float32."""
    if action == "write":
        return vectors
    wide = here.float()
    if action == "add":
        return wide + vectors.float()
    unit = vectors.float()
    return wide - (wide * unit).sum(dim=-1, keepdim=True) * unit


def answers(logits: Tensor, columns: list[int] | None) -> Tensor:
    """Return the logits of `columns` and the log of the normaliser; all logits for ``None``."""
    if columns is None:
        return logits.detach()
    return torch.cat([logits[:, columns], logits.float().logsumexp(-1, keepdim=True)], dim=-1)
