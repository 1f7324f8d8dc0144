"""Measure the log-likelihood of a verbalizer's replies, with and without the vector.

The difference is how much the vector contributes to the text, in nats per token: the *effect* in
the doctor's table. It is 0 for a verbalizer that ignores its vector, however fluent the text is::

    given = likelihoods(verbalizer, vectors, everyone, ids)
    effect = given - likelihoods(verbalizer, vectors, ~everyone, ids)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import nnsight
import torch

from ..core.injection import write
from ..remote.ndif import send

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from .verbalizer import Verbalizer


def likelihoods(
    verbalizer: Verbalizer,
    vectors: Float[Tensor, "rows d_model"],
    given: Bool[Tensor, " rows"],
    replies: list[list[int]],
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
    longest = max(map(len, replies))
    # In a causal model, padding on the right does not affect the tokens before it.
    padded = [[*verbalizer.prompt.ids, *ids, *[ids[-1]] * (longest - len(ids))] for ids in replies]
    with verbalizer.runtime.use():
        if not verbalizer.runtime.remote:
            return _forward(verbalizer, vectors, given, padded, replies, {})
        return send(
            lambda: _forward(verbalizer, vectors, given, padded, replies, {"remote": True}),
            "The request to measure likelihoods",
        )


def _forward(
    verbalizer: Verbalizer,
    vectors: Tensor,
    given: Tensor,
    padded: list[list[int]],
    replies: list[list[int]],
    options: dict[str, Any],
) -> Tensor:
    """Run one forward pass; the block is shipped as source where it runs remotely."""
    av, site, sites = verbalizer.av, verbalizer.site, verbalizer.prompt.sites
    injection, start = verbalizer.checkpoint.injection, len(verbalizer.prompt.ids)
    with torch.no_grad(), av.trace(torch.tensor(padded, device="cpu"), **options):
        site.output = write(site.output, vectors, sites, injection, given)
        logits = av.output.logits
        means = []
        for row in range(len(replies)):
            said = torch.tensor(replies[row], device=logits.device)
            scores = logits[row, start - 1 : start - 1 + len(said)].float().log_softmax(-1)
            means.append(scores.gather(1, said[:, None]).mean())
        found = nnsight.save(torch.stack(means).cpu())
    return found  # noqa: RET504  (made in a traced block, it is a value only after it)
