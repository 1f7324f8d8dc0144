"""How likely a verbalizer finds its own reply, with its vector and with none.

The difference is what the vector adds to the text, in nats per token: the *effect* of the doctor's
table. It is 0 for a verbalizer that does not read its vector, however fluent the text is::

    sure = likelihoods(half, vectors, everyone, ids)
    effect = sure - likelihoods(half, vectors, ~everyone, ids)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.injection import write
from ..remote.ndif import send
from .verbalizer import Verbalizer


def likelihoods(
    half: Verbalizer, vectors: Tensor, given: Tensor, replies: list[list[int]]
) -> Tensor:
    """The mean log-likelihood of each reply's tokens after the prompt, in nats.

    Args:
        half: The verbalizer; its checkpoint and prompt say what is written where.
        vectors: One per row.
        given: Rows that get their vector; the others are the null control.
        replies: The token ids of each row's reply.
    """
    longest = max(map(len, replies))
    # Filled up on the right, where a causal model cannot see it from the left.
    padded = [[*half.prompt.ids, *ids, *[ids[-1]] * (longest - len(ids))] for ids in replies]
    if half.remote:
        return send(
            lambda: _forward(half, vectors, given, padded, replies, {"remote": True}),
            "The request to measure likelihoods",
        )
    half.av.dispatch()
    return _forward(half, vectors, given, padded, replies, {})


def _forward(
    half: Verbalizer,
    vectors: Tensor,
    given: Tensor,
    padded: list[list[int]],
    replies: list[list[int]],
    options: dict[str, Any],
) -> Tensor:
    """One forward pass; the block is shipped as it stands where it runs remotely."""
    av, site, sites = half.av, half.site, half.prompt.sites
    injection, start = half.checkpoint.injection, len(half.prompt.ids)
    with torch.no_grad(), av.trace(torch.tensor(padded), **options):
        site.output = write(site.output, vectors, sites, injection, given)
        logits = av.output.logits
        means = []
        for row in range(len(replies)):
            said = torch.tensor(replies[row], device=logits.device)
            places = logits[row, start - 1 : start - 1 + len(said)].float().log_softmax(-1)
            means.append(places.gather(1, said[:, None]).mean())
        found = torch.stack(means).cpu().save()
    return found  # noqa: RET504  (made in a traced block, it is a value only after it)
