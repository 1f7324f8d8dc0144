"""Measure the log-likelihood of a verbalizer's replies, with and without the vector.

The difference is how much the vector contributes to the text, in nats per token: the *effect* in
the doctor's table. It is 0 for a verbalizer that ignores its vector, however fluent the text is::

    given = likelihoods(verbalizer, vectors, everyone, ids)
    effect = given - likelihoods(verbalizer, vectors, ~everyone, ids)

`token_likelihoods` has the tokens one by one, so that parts of a text can be summed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from ..core.injection import write
from ..remote.ndif import send

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from .verbalizer import Verbalizer


_BATCH = 32
"""Rows per forward pass."""


def likelihoods(
    verbalizer: Verbalizer,
    vectors: Float[Tensor, "rows d_model"],
    given: Bool[Tensor, " rows"],
    replies: Sequence[Sequence[int]],
) -> Float[Tensor, " rows"]:
    """Return the mean log-likelihood of each reply's tokens after the prompt, in nats.

    Args:
        verbalizer: The verbalizer; its checkpoint and prompt say where the vector is written.
        vectors: One vector per row.
        given: Rows that get their vector; the others are the null control.
        replies: The token ids of each row's reply.

    Raises:
        VerbalizationError: You are tracing the verbalizer.
        HostError: The NDIF host stayed unavailable, or the request failed there.
    """
    found = token_likelihoods(verbalizer, vectors, given, replies)
    return torch.stack([each.mean() for each in found])


def token_likelihoods(
    verbalizer: Verbalizer,
    vectors: Float[Tensor, "rows d_model"],
    given: Bool[Tensor, " rows"],
    replies: Sequence[Sequence[int]],
) -> list[Float[Tensor, " tokens"]]:
    """Return the log-likelihood of each token of each reply, in nats; see `likelihoods`."""
    with verbalizer.runtime.use(), verbalizer.packed(_BATCH * max(map(len, replies))):
        found: list[Tensor] = []
        for start in range(0, len(replies), _BATCH):
            rows = slice(start, start + _BATCH)
            found += _batch(verbalizer, vectors[rows], given[rows], replies[rows])
    return found


def _batch(
    verbalizer: Verbalizer, vectors: Tensor, given: Tensor, replies: Sequence[Sequence[int]]
) -> list[Tensor]:
    longest = max(map(len, replies))
    # In a causal model, padding on the right does not affect the tokens before it.
    padded = [[*verbalizer.prompt.ids, *ids, *[ids[-1]] * (longest - len(ids))] for ids in replies]
    if not verbalizer.runtime.remote:
        found = _forward(verbalizer, vectors, given, padded, {})
    else:
        found = send(
            lambda: _forward(verbalizer, vectors, given, padded, {"remote": True}),
            "The request to measure likelihoods",
        )
    return [row[: len(ids)] for row, ids in zip(found, replies, strict=True)]


def _forward(
    verbalizer: Verbalizer,
    vectors: Tensor,
    given: Tensor,
    padded: list[list[int]],
    options: dict[str, Any],
) -> Tensor:
    """Run one forward pass; the block is shipped as source where it runs remotely.

    Returns:
        ``[rows, tokens]``, of the tokens after the prompt.
    """
    av, site, sites = verbalizer.av, verbalizer.site, verbalizer.prompt.sites
    injection, start = verbalizer.checkpoint.injection, len(verbalizer.prompt.ids)
    ids = torch.tensor(padded, device="cpu")
    with torch.no_grad(), av.trace(ids, **options):
        site.output = write(site.output, vectors, sites, injection, given)
        logits = av.output.logits
        rows = []
        for row in range(len(ids)):
            said = ids[row, start:].to(logits.device)
            scores = logits[row, start - 1 : -1].float().log_softmax(-1)
            rows.append(scores.gather(1, said[:, None])[:, 0])
        found = nnsight.save(torch.stack(rows).cpu())
    return found  # noqa: RET504  (made in a traced block, it is a value only after it)
