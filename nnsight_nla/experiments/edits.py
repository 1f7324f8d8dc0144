"""What runs inside the block: read and write rows of a batch, in the order of the forward pass.

A batch of a sweep holds the same prompt in every row, and each row is one cell: it is written at
its own place. The block is shipped as source where it runs remotely, and so is this module. So it
names nothing of ours, only envoys, tensors and numbers, and imports nothing but torch.

A *step* is ``(action, envoy, where, start, stop, rows, positions, vectors)``:

* ``action``: ``"read"`` the rows' values; ``"write"`` `vectors` in their place; ``"add"`` them;
  ``"project"`` out the unit vectors.
* ``where``: the envoy's ``"input"`` or ``"output"``; columns ``start`` to ``stop`` of it.
* ``rows``, ``positions``: ``[n]``, the places; ``vectors``: ``[n, width]``.
"""

from __future__ import annotations

import torch


def perform(steps):
    """Perform the steps; returns what the ``"read"`` ones found, each ``[n, width]``."""
    found = []
    for action, envoy, where, start, stop, rows, positions, vectors in steps:
        value = envoy.input if where == "input" else envoy.output
        whole = value[0] if isinstance(value, tuple) else value
        rows, positions = rows.to(whole.device), positions.to(whole.device)
        here = whole[rows, positions, start:stop]
        if action == "read":
            found.append(here.detach().clone())
            continue
        new = changed(action, here, vectors.to(whole.device))
        after = whole.clone()
        after[rows, positions, start:stop] = new.to(whole.dtype)
        if where == "input":
            envoy.input = after
        else:
            envoy.output = (after, *value[1:]) if isinstance(value, tuple) else after
    return found


def changed(action, here, vectors):
    """What is written in the place of `here`; additions and projections in float32."""
    if action == "write":
        return vectors
    wide = here.float()
    if action == "add":
        return wide + vectors.float()
    unit = vectors.float()
    return wide - (wide * unit).sum(dim=-1, keepdim=True) * unit


def answers(logits, columns):
    """The logits of `columns` and the log of the normaliser; all of them for ``None``."""
    if columns is None:
        return logits.detach()
    return torch.cat([logits[:, columns], logits.float().logsumexp(-1, keepdim=True)], dim=-1)
