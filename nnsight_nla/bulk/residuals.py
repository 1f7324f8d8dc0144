"""The target over documents: the residuals at block K, at the chosen positions.

Documents run in batches, padded on the right: attention is causal, so no real token sees the
padding, and every architecture counts positions from the left as it does for one document alone.
Nothing above block K is run, and only the chosen residuals leave the trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import InjectionError, NLAError
from ..models import bridge, hosts
from ..remote.ndif import send
from .sources import Item
from .token_selection import Located, Places, locate

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

BATCH_TOKENS = 8192
"""The most tokens, padding included, in one forward pass."""


@dataclass(frozen=True)
class Found:
    """One row of the input, and the residuals that were read in it."""

    item: Item
    """The row; its error, or why it could not be read."""
    positions: Sequence[int | None]
    """Where it was read; unknown where vectors come without it."""
    tokens: Sequence[str | None]
    """The token at each position."""
    read: Sequence[str | None]
    """The text up to each position, that token included."""
    vectors: Float[Tensor, "positions d_model"]
    """The residuals, float32 on the CPU."""


@dataclass(frozen=True)
class Reader:
    """A target, the layer that is read, and where."""

    model: Any
    """An nnsight model."""
    layer: int
    """K: the output of this block."""
    places: Places
    """Which positions."""
    max_tokens: int | None = None
    """Only so many tokens of a document are read; ``None``: all, and a document that is longer than
    the target's context is a row with an error."""
    remote: bool = False
    """Run the target on the configured NDIF host."""

    def __post_init__(self) -> None:
        """Refuse what cannot be read, before anything runs.

        Raises:
            NLAError: `model` is a `TransformerBridge`, or has no such block.
        """
        if bridge.is_bridge(self.model):
            raise InjectionError(
                "A data set is read through an nnsight model, got a TransformerBridge. Write: "
                "TransformersModel(name, task='text-generation')."
            )
        hosts.block(self.model, self.layer)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise NLAError(f"max_tokens={self.max_tokens!r}: expected a whole number from 1.")

    @property
    def context(self) -> int:
        """How many tokens of a document can be read."""
        config = hosts.text_config(self.model)
        return int(getattr(config, "max_position_embeddings", None) or 1 << 30)

    def read(self, items: Sequence[Item]) -> list[Found]:
        """The residuals of a block of documents, in order."""
        found: dict[int, Found] = {}
        waiting: list[tuple[Item, Located, list[int]]] = []
        for item in items:
            text, error = self._located(item)
            places = [] if text is None else self.places.choose(text, item.doc_id)
            if text is None or not places:
                empty = torch.empty(0, hosts.width(self.model))
                left = Item(item.row, item.doc_id, None, error, item.carried)
                found[item.row] = Found(left, [], [], [], empty)
            else:
                waiting.append((item, text, places))
        for batch in _batches(waiting):
            vectors = self._forward([(text.ids, places) for _, text, places in batch])
            parts = vectors.split([len(places) for _, _, places in batch])
            for (item, text, places), part in zip(batch, parts, strict=True):
                tokens = [text.tokens[place] for place in places]
                read = [text.text[: text.ends[place]] for place in places]
                found[item.row] = Found(item, places, tokens, read, part.clone())
        return [found[item.row] for item in items]

    def _located(self, item: Item) -> tuple[Located | None, str | None]:
        if item.error is not None:
            return None, item.error
        try:
            text = locate(self.model, item.value)
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
        return Located(text.text, text.ids[:limit], text.tokens[:limit], text.ends[:limit]), None

    def _forward(self, rows: list[tuple[tuple[int, ...], list[int]]]) -> Tensor:
        width = max(len(ids) for ids, _ in rows)
        # The padding's id is never seen: any valid one does.
        ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in rows])
        row = torch.tensor([number for number, (_, places) in enumerate(rows) for _ in places])
        column = torch.tensor([place for _, places in rows for place in places])
        what = f"The request to read {len(rows)} documents with {hosts.describe(self.model)}"
        if not self.remote:
            return self._trace(ids, row, column)
        return send(lambda: self._trace(ids, row, column), what)

    def _trace(self, ids: Tensor, row: Tensor, column: Tensor) -> Tensor:
        """The block is shipped as it stands where it runs remotely, so it names nothing of self."""
        block = hosts.block(self.model, self.layer)
        with torch.no_grad(), self.model.trace(ids, remote=self.remote) as tracer:
            chosen = block.output[row, column].float().cpu().save()
            tracer.stop()
        return chosen


def _batches(
    waiting: list[tuple[Item, Located, list[int]]],
) -> Iterator[list[tuple[Item, Located, list[int]]]]:
    """Consecutive documents, as many as fit; they depend on the block of rows and nothing else."""
    batch: list[tuple[Item, Located, list[int]]] = []
    for each in waiting:
        longest = max(len(text.ids) for _, text, _ in [*batch, each])
        if batch and longest * (len(batch) + 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(each)
    if batch:
        yield batch
