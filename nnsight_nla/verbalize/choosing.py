"""Compare the choices of a question by the oracle's own probabilities, without generation.

The probability of a choice is that of an answer that begins with it: the product of the
probabilities of its tokens, each after the ones before it. These are divided by their sum, which is
kept, as `Reply.mass`: if it is small, the oracle would answer something else.

Prompt and vectors are read once if the choices are single tokens, and once for each different
beginning of longer ones (a choice without its last token):

>>> choices = Choices(("Paris", "Poland", "Rome"), ((9, 4), (9, 5), (7,)))
>>> choices.compared
{(): (9, 7), (9,): (4, 5)}
>>> choices.branches
((9,),)

No choice may be the beginning of another: their probabilities would overlap.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
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
    ids: tuple[tuple[int, ...], ...]
    """The tokens of each."""

    @property
    def compared(self) -> dict[tuple[int, ...], tuple[int, ...]]:
        """What may stand before a token of a choice, and the tokens that are compared there."""
        found: dict[tuple[int, ...], dict[int, None]] = {}
        for ids in self.ids:
            for place, token in enumerate(ids):
                found.setdefault(ids[:place], {})[token] = None
        return {before: tuple(tokens) for before, tokens in found.items()}

    @property
    def branches(self) -> tuple[tuple[int, ...], ...]:
        """What follows the prompt in a forward pass, so that all of `compared` is computed."""
        every = list(self.compared)
        return tuple(
            each for each in every
            if not any(other[: len(each)] == each for other in every if other != each)
        )  # fmt: skip

    def logprobs(
        self, found: Mapping[tuple[int, ...], Float[Tensor, " rows"]]
    ) -> Float[Tensor, "rows choices"]:
        """Return the log-probabilities of the choices, in nats.

        Args:
            found: The log-probability of the last of these tokens after the others.
        """
        each = [
            torch.stack([found[ids[: place + 1]] for place in range(len(ids))]).sum(dim=0)
            for ids in self.ids
        ]
        return torch.stack(each, dim=-1)


def choose(
    verbalizer: Verbalizer, batch: Batch, choices: Choices
) -> Generator[tuple[int, Reply], None, None]:
    """Return the probability of each choice, in one batch. Call it inside ``runtime.use()``.

    Args:
        verbalizer: The oracle.
        batch: The rows.
        choices: What is compared.

    Yields:
        A row's number and its reply: the likeliest choice, and the probabilities of all.
    """
    found: dict[tuple[int, ...], Tensor] = {}
    markers: list[Tensor] = []
    for branch in choices.branches:
        marker, logits = _read(verbalizer, batch.followed_by(branch), len(branch) + 1)
        markers.append(marker)
        logprobs = logits.log_softmax(dim=-1)
        for before, tokens in choices.compared.items():
            if branch[: len(before)] == before:
                found |= {(*before, each): logprobs[:, len(before), each] for each in tokens}
    scores = choices.logprobs(found)
    for row, receipt in enumerate(verbalizer.receipts(markers[0], batch)):
        yield row, chosen(choices, scores[row], receipt)


def chosen(
    choices: Choices, logprobs: Float[Tensor, " choices"], receipt: tuple[float, float, float]
) -> Reply:
    """Return the reply of one row: the likeliest choice, and the probabilities of all.

    Args:
        choices: What is compared.
        logprobs: Their log-probabilities, in nats.
        receipt: The norms before and after writing, and the cosine with the vector.
    """
    shares, mass = logprobs.softmax(dim=-1).tolist(), float(logprobs.exp().sum())
    best = choices.words[shares.index(max(shares))]
    return Reply(
        best, best, "choice", 0, *receipt,
        tagged=False, probabilities=tuple(shares), mass=mass,
    )  # fmt: skip


def _read(verbalizer: Verbalizer, batch: Batch, last: int) -> tuple[Tensor, Tensor]:
    """Return the slots' residuals before and after, and the logits at the last tokens."""
    if verbalizer.runtime.remote:
        what = f"The request to compare choices for {len(batch)} rows"
        return send(lambda: _forward(verbalizer, batch, last, {"remote": True}), what)
    with contiguous_head(verbalizer.av):
        return _forward(verbalizer, batch, last, {})


def _forward(
    verbalizer: Verbalizer, batch: Batch, last: int, options: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Run one forward pass; the block is shipped as source where it runs remotely."""
    av, site, injection = verbalizer.av, verbalizer.site, verbalizer.checkpoint.injection
    ids, vectors = batch.ids.clone(), batch.vectors.contiguous().clone()
    written, sites = batch.written, batch.sites
    rows = torch.arange(len(ids), device="cpu")[:, None]
    options = {**hosts.only_last(av, last), **options}
    with torch.no_grad(), av.trace(ids, **options):
        before = site.output
        after = write_slots(before, vectors, written, injection)
        site.output = after
        marker = torch.stack([before[rows, sites], after[rows, sites]])
        marker = nnsight.save(marker.float().cpu())
        logits = nnsight.save(av.output.logits[:, -last:].float().cpu())
    return marker, logits
