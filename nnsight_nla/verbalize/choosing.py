"""Compare the choices of a question by the oracle's own probabilities, in one forward pass.

The oracle reads prompt and vectors once. Of the probabilities that it gives to the first token of
its answer, those of the choices' first tokens are taken and divided by their sum; the sum is kept,
as `Reply.mass`: if it is small, the oracle would answer something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from ..core.injection import write_slots
from ..explanation.records import Reply
from ..models import hosts
from ..models.head import contiguous_head
from ..remote.ndif import send

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .batch import Batch
    from .verbalizer import Verbalizer


@dataclass(frozen=True)
class Choices:
    """The answers that a question can be given."""

    words: tuple[str, ...]
    """The choices."""
    ids: tuple[int, ...]
    """The first token of each."""


def choose(verbalizer: Verbalizer, batch: Batch, choices: Choices) -> Iterator[tuple[int, Reply]]:
    """Return the probability of each choice, in one batch. Call it inside ``runtime.use()``.

    Args:
        verbalizer: The oracle.
        batch: The rows.
        choices: What is compared.

    Yields:
        A row's number and its reply: the likeliest choice, and the probabilities of all.
    """
    if verbalizer.runtime.remote:
        what = f"The request to compare choices for {len(batch)} rows"
        marker, logits = send(lambda: _forward(verbalizer, batch, {"remote": True}), what)
    else:
        with contiguous_head(verbalizer.av):
            marker, logits = _forward(verbalizer, batch, {})
    logprobs = logits.log_softmax(dim=-1)[:, list(choices.ids)]
    for row, receipt in enumerate(verbalizer.receipts(marker, batch)):
        yield row, chosen(choices, logprobs[row], receipt)


def chosen(
    choices: Choices, logprobs: Float[Tensor, " choices"], receipt: tuple[float, float, float]
) -> Reply:
    """Return the reply of one row: the likeliest choice, and the probabilities of all.

    Args:
        choices: What is compared.
        logprobs: The log-probabilities of their first tokens, in nats.
        receipt: The norms before and after writing, and the cosine with the vector.
    """
    shares, mass = logprobs.softmax(dim=-1).tolist(), float(logprobs.exp().sum())
    best = choices.words[shares.index(max(shares))]
    return Reply(
        best, best, "choice", 0, *receipt,
        tagged=False, probabilities=tuple(shares), mass=mass,
    )  # fmt: skip


def _forward(
    verbalizer: Verbalizer, batch: Batch, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return the slots' residuals before and after, and the logits of the first answer token.

    The block is shipped as source where it runs remotely.
    """
    av, site, injection = verbalizer.av, verbalizer.site, verbalizer.checkpoint.injection
    ids, vectors = batch.ids.clone(), batch.vectors.contiguous().clone()
    written, sites = batch.written, batch.sites
    rows = torch.arange(len(ids), device="cpu")[:, None]
    options = {**hosts.only_last(av), **options}
    with torch.no_grad(), av.trace(ids, **options):
        before = site.output
        after = write_slots(before, vectors, written, injection)
        site.output = after
        marker = torch.stack([before[rows, sites], after[rows, sites]])
        marker = nnsight.save(marker.float().cpu())
        logits = nnsight.save(av.output.logits[:, -1].float().cpu())
    return marker, logits
