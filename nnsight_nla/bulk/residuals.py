"""Read the residuals of documents at the output of block K, at the selected positions.

Documents run in batches, padded on the right: attention is causal, so no real token sees the
padding, and every architecture counts positions from the left as it does for a single document.
Nothing above block K runs, and only the selected residuals leave the trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch

from ..checkpoint.identity import hub_id
from ..checkpoint.origin import Claims, Origin
from ..core.numeric import is_int
from ..errors import InjectionError, NLAError, shown
from ..models import bridge, hosts, target, weights
from ..models.head import head_envoy
from ..remote.ndif import send
from .sources import Item
from .token_selection import TokenizedText, TokenSelection, tokenize

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel
    from torch import Tensor

    from ..checkpoint.checkpoint import Checkpoint

BATCH_TOKENS = 8192
"""The most tokens, padding included, in one forward pass."""
_Document = tuple[Item, TokenizedText, list[int]]


@dataclass(frozen=True)
class Prefixes(Sequence["str | None"]):
    """The text up to each of several places in it, cut when it is asked for.

    All of them at once would take memory that grows with the square of the text's length.
    """

    text: str
    """The whole text."""
    ends: tuple[int, ...]
    """The number of characters up to each place."""

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Prefixes: ...
    def __getitem__(self, place: int | slice) -> str | Prefixes:
        if isinstance(place, slice):
            return Prefixes(self.text, self.ends[place])
        return self.text[: self.ends[place]]


@dataclass(frozen=True)
class ItemResiduals:
    """One row of the input, and the residuals that were read in it."""

    item: Item
    """The row; its error says why it could not be read."""
    positions: Sequence[int | None]
    """The positions that were read; ``None`` where vectors come without them."""
    tokens: Sequence[str | None]
    """The token at each position."""
    read: Sequence[str | None]
    """The text up to each position, that token included."""
    vectors: Float[Tensor, "positions d_model"]
    """The residuals, float32 on the CPU."""
    notes: tuple[str, ...] = ()
    """Warnings on each of them."""
    next_tokens: Sequence[Sequence[str]] = ()
    """The target's likeliest next tokens after each position, likeliest first, if asked for."""


@dataclass(frozen=True)
class ResidualReader:
    """Reads the residuals of a target at one layer."""

    model: TransformersModel
    """The target."""
    layer: int
    """K: the output of this block."""
    selection: TokenSelection
    """The positions to read."""
    max_tokens: int | None = None
    """Read at most this many tokens of a document. ``None``: read all, and record a document that
    is longer than the target's context as a row with an error."""
    remote: bool = False
    """Run the target on the configured NDIF host."""
    next_tokens: int = 0
    """How many of the target's likeliest next tokens to read at each position; with more than 0,
    the blocks above K run too."""

    def __post_init__(self) -> None:
        """Check the settings before anything runs.

        Raises:
            NLAError: `model` is a `TransformerBridge` or has no such block, `max_tokens` is not
                positive, or `next_tokens` is not from 0 to the size of the vocabulary.
        """
        if bridge.is_bridge(self.model):
            raise InjectionError(
                "A data set is read through an nnsight model, got a TransformerBridge. Write: "
                "TransformersModel(name, task='text-generation')."
            )
        hosts.block(self.model, self.layer)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise NLAError(
                f"max_tokens={shown(self.max_tokens)}: expected an integer of 1 or more."
            )
        vocabulary = int(getattr(hosts.text_config(self.model), "vocab_size", None) or 1 << 30)
        if not is_int(self.next_tokens, 0) or self.next_tokens > vocabulary:
            raise NLAError(
                f"next_tokens={shown(self.next_tokens)}: expected a whole number from 0 to "
                f"{vocabulary}, the number of the target's tokens."
            )
        if self.next_tokens:
            head_envoy(self.model)

    def origin(self, checkpoint: Checkpoint, claims: Claims) -> tuple[Origin, list[str]]:
        """Return the origin of the residuals, and how it differs from a checkpoint's.

        The model has the name that the checkpoint gives it, or its own without the folders of this
        machine, so that the output is the same everywhere.

        Raises:
            NLAError: It differs, and `claims` does not say to ignore that.
        """
        found = target.origin(self.model, self.layer)
        what = f"The residual stream of {found.model}"
        ignored = found.check(checkpoint, what, claims=claims)
        name = str(found.model)
        public = hub_id(name) or (Path(name).name if Path(name).is_dir() else name)
        known = None if ignored else checkpoint.base_model
        return replace(found, model=known or public), ignored

    @property
    def context(self) -> int:
        """The target's context length in tokens."""
        config = hosts.text_config(self.model)
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def read(self, items: Sequence[Item]) -> list[ItemResiduals]:
        """Read the residuals of documents; the result has their order."""
        found: dict[int, ItemResiduals] = {}
        waiting: list[_Document] = []
        tokenizer = self.model.tokenizer
        for item in items:
            text, error = self._tokenized(item)
            positions = [] if text is None else self.selection.choose(text, item.doc_id)
            if text is None or not positions:
                found[item.row] = nothing_read(item, error, hosts.width(self.model))
            else:
                waiting.append((item, text, positions))
        for batch in _batches(waiting):
            vectors, following = self._forward(
                [(text.ids, positions) for _, text, positions in batch]
            )
            counts = [len(positions) for _, _, positions in batch]
            split = zip(batch, vectors.split(counts), following.split(counts), strict=True)
            for (item, text, positions), mine, after in split:
                tokens = [text.tokens[position] for position in positions]
                read = Prefixes(text.text, tuple(text.ends[position] for position in positions))
                said = [list(hosts.spelled(tokenizer, row).tokens) for row in after.tolist()]
                found[item.row] = ItemResiduals(
                    item, positions, tokens, read, mine.clone(), next_tokens=said
                )
        return [found[item.row] for item in items]

    def _tokenized(self, item: Item) -> tuple[TokenizedText | None, str | None]:
        if item.error is not None:
            return None, item.error
        try:
            text = tokenize(self.model, item.value)
        except InjectionError as error:
            return None, str(error)
        length, limit = len(text.ids), min(self.max_tokens or self.context, self.context)
        if self.max_tokens is None and length > limit:
            return None, (
                f"it has {length} tokens, the target reads {limit}; read its beginning with "
                f"max_tokens={limit}"
            )
        if not length:
            return None, "it has no tokens"
        first = slice(limit)
        return TokenizedText(text.text, text.ids[first], text.tokens[first], text.ends[first]), None

    def _forward(self, rows: list[tuple[tuple[int, ...], list[int]]]) -> tuple[Tensor, Tensor]:
        width = max(len(ids) for ids, _ in rows)
        # The id of the padding does not matter: no real token sees it.
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in rows], device="cpu")
        row = torch.tensor(
            [number for number, (_, chosen) in enumerate(rows) for _ in chosen], device="cpu"
        )
        column = torch.tensor([position for _, chosen in rows for position in chosen], device="cpu")
        what = f"The request to read {len(rows)} documents with {hosts.describe(self.model)}"
        if not self.remote:
            weights.load(self.model)
            return self._trace(ids, row, column)
        return send(lambda: self._trace(ids, row, column), what)

    def _trace(self, ids: Tensor, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor]:
        """Run one trace; a remote host gets the block's source, so it uses nothing of `self`.

        Returns:
            The residuals, and the ids of the likeliest next tokens, a row for each.
        """
        model, count = self.model, self.next_tokens
        block = hosts.block(model, self.layer)
        if not count:
            with torch.no_grad(), model.trace(ids, remote=self.remote) as tracer:
                chosen = block.output[row, column].float().cpu().save()
                tracer.stop()
            return chosen, torch.empty(len(chosen), 0, dtype=torch.int64, device="cpu")
        head = head_envoy(model)
        with torch.no_grad(), model.trace(ids, remote=self.remote):
            chosen = block.output[row, column].float().cpu().save()
            # The logits of all other positions would take much more memory than all else.
            head.input = head.input[row, column][None]
            after = model.output.logits[0].float().topk(count).indices.cpu().save()
        return chosen, after


def nothing_read(item: Item, error: str | None, d_model: int) -> ItemResiduals:
    """Return a row without residuals: it has an error, or no position was selected."""
    unread = Item(item.row, item.doc_id, None, error, item.carried)
    return ItemResiduals(
        unread, [], [], [], torch.empty(0, d_model, dtype=torch.float32, device="cpu")
    )


def _batches(waiting: list[_Document]) -> Iterator[list[_Document]]:
    """Yield consecutive documents, as many as fit; this depends on the chunk and nothing else."""
    batch: list[_Document] = []
    for each in waiting:
        longest = max(len(text.ids) for _, text, _ in [*batch, each])
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
