"""Many rows fast: what a batch shares is computed once, and a row that is done leaves.

A verbalizer's prompt is the same in every row up to the marker, so the keys and values before it
are those of one row, repeated. The vector is written in the prefill of what follows; from then on
a row is a cache and its last token, and decoding needs no hooks::

    cache = DynamicCache(config)            # one row, the tokens before the marker
    cache.batch_repeat_interleave(rows)     # the rest of the prompt is run on top, vectors written
    for row, ids, ended in decode(model, logits, in_place(cache, ...), ...):
        ...                                 # rows come as they finish, not in their order

All rows of a batch are always of one length, so there is no padding and no mask. `decode` runs on a
host as well, where the cache is transformers' own; it may use torch and what stands in this file.

What was measured and left out (tests/bench/test_speed.py, 32 rows on two cores): waiting vectors
that take the places of finished rows need a mask, and with one grouped-query models copy their keys
and values. Bare forwards with full batches against rows that leave: x0.72 for 12 layers of 512,
x1.14 for the tiny pair. transformers' static cache needs the same mask: a step took 113 ms where
this one takes 43 (12 layers of 512), and 111 compiled, after 37 s of compiling. No GPU was there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .. import _compat
from ..errors import VerbalizationError
from ..models import hosts

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from ..models.runtime import Runtime

Engine = Literal["fast", "generate"]
MOST = 128
"""The most rows that ``batch_size="auto"`` puts into a batch."""
AT_A_HOST = 64
"""Rows in a remote request, whose host's memory is not known here."""
_SHARE = 0.6  # Of what is free: what allocators round up and others take is not counted below.


def check_engine(given: object) -> Engine:
    """Check the name of an engine.

    Raises:
        VerbalizationError: It is neither ``"fast"`` nor ``"generate"``.
    """
    if given in get_args(Engine):
        return given  # type: ignore[return-value]
    raise VerbalizationError(f"engine={given!r}: expected 'fast' or 'generate'.")


def unfit(av: Any) -> str | None:
    """Why `av` has to take the plain path, ``None`` where it need not; loads no weights."""
    model, config = hosts.module_of(av), hosts.text_config(av)
    if _compat.is_stateful(model):
        return f"{type(model).__name__} keeps a state that cannot be repeated and cut by rows"
    others = {
        type(layer).__name__
        for layer in DynamicCache(config=config).layers
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer)
    }
    if others:
        return f"the cache of {type(model).__name__} has layers of another kind: {sorted(others)}"
    if _compat.has_edits(av):
        return "the verbalizer has edits of yours, which act in nnsight's own generate"
    return None


def decode(
    model: Callable[..., Any],
    logits: Float[Tensor, "rows vocabulary"],
    cache: Any,
    *,
    processors: Any,
    closed: Callable[[list[int]], bool],
    ends: list[int],
    limit: int,
) -> Iterator[tuple[int, list[int], bool]]:
    """Generate on from a prefill, and let each row leave when it is done.

    Args:
        model: Called as a causal language model's forward.
        logits: What the prefill says about each row's first token.
        cache: The prefill's keys and values; ends up empty of meaning.
        processors: Logits processors; one with ``keep`` is told which rows go on.
        closed: Whether a row's tokens hold the closing tag.
        ends: Ids that end a reply and are no part of it.
        limit: The most tokens of a row.

    Yields:
        A row's number, its tokens, and whether an end-of-sequence token ended it.
    """
    going = list(range(len(logits)))
    written: list[list[int]] = [[] for _ in going]
    while True:
        # On the CPU in float32: a draw is the same on every device.
        scores = processors(None, logits.float())
        tokens = scores.argmax(dim=-1)
        left: list[int] = []
        for place, token in enumerate(tokens.tolist()):
            row = going[place]
            if token in ends:
                yield row, written[row], True
                continue
            written[row].append(token)
            if closed(written[row]) or len(written[row]) == limit:
                yield row, written[row], False
            else:
                left.append(place)
        if not left:
            return
        if len(left) < len(going):
            # The last rows take the places of those that left: most rows stay where they are.
            moved = iter([place for place in left if place >= len(left)])
            stay = set(left)
            order = [place if place in stay else next(moved) for place in range(len(left))]
            going = [going[place] for place in order]
            chosen = torch.tensor(order, device=tokens.device)
            tokens = tokens[chosen]
            cache.batch_select_indices(chosen)
            for processor in processors:
                if hasattr(processor, "keep"):
                    processor.keep(order)
        with torch.inference_mode():
            output = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]


class Closing:
    """Whether a row's tokens end with the closing tag, mostly without decoding them.

    A tag can only close with a token that holds its last character, which is looked up once per
    token; then the row's end is decoded.
    """

    def __init__(self, tokenizer: Any, tag: str) -> None:
        self.tokenizer, self.tag = tokenizer, tag
        self.may_close: dict[int, bool] = {}

    def __call__(self, ids: list[int]) -> bool:
        """Whether the tag is in the text that the last of `ids` make."""
        last = ids[-1]
        if last not in self.may_close:
            self.may_close[last] = self.tag[-1] in self.tokenizer.decode([last])
        if not self.may_close[last]:
            return False
        tail = ids[-2 * len(self.tag) :]
        return self.tag in self.tokenizer.decode(tail, skip_special_tokens=True)


class Slots(DynamicLayer):
    """A cache layer with room for the whole reply, written in place.

    transformers' own layer is copied whole at every token, which took two fifths of a step at 32
    rows (12 layers of 512, two cores).
    """

    def __init__(self, layer: Any, rows: Int[Tensor, " rows"], capacity: int) -> None:
        """Take over rows of a prefilled layer; `capacity` is in tokens."""
        super().__init__()
        self.dtype, self.device, self.is_initialized = layer.dtype, layer.device, True
        self.length = layer.keys.shape[-2]
        rows = rows.to(self.device)
        self.all_keys = self._room(layer.keys, rows, capacity)
        self.all_values = self._room(layer.values, rows, capacity)
        self._show(len(rows))

    def update(
        self,
        key_states: Tensor,
        value_states: Tensor,
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the others."""
        rows, end = len(key_states), self.length + key_states.shape[-2]
        self.all_keys[:rows, :, self.length : end] = key_states
        self.all_values[:rows, :, self.length : end] = value_states
        self.length = end
        self._show(rows)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows; one that stays in its place is not touched."""
        indices = indices.to(self.device)
        to = torch.arange(len(indices), device=self.device)
        to = to[indices != to]
        for each in (self.all_keys, self.all_values):
            each[to, :, : self.length] = each[indices[to], :, : self.length]
        self._show(len(indices))

    def _show(self, rows: int) -> None:
        self.keys = self.all_keys[:rows, :, : self.length]
        self.values = self.all_values[:rows, :, : self.length]

    @staticmethod
    def _room(states: Tensor, rows: Tensor, capacity: int) -> Tensor:
        _, heads, length, width = states.shape
        room = states.new_empty(len(rows), heads, capacity, width)
        room[:, :, :length] = states[rows]
        return room


def in_place(cache: Any, rows: Int[Tensor, " rows"], capacity: int) -> Any:
    """`cache` with `rows` of it (any may come several times), written in place from here on.

    Args:
        cache: A prefilled `DynamicCache`; its layers are replaced.
        rows: Which rows go on.
        capacity: The most tokens a row will have, prompt included. A sliding window that is
            shorter needs transformers' own layers.
    """
    windows = [getattr(layer, "sliding_window", None) or capacity for layer in cache.layers]
    if min(windows) < capacity:
        cache.batch_select_indices(rows.to(cache.layers[0].device))
        return cache
    for number, layer in enumerate(cache.layers):
        cache.layers[number] = Slots(layer, rows, capacity)
    return cache


def rows_that_fit(runtime: Runtime, *, prompt: int, rest: int, new_tokens: int) -> int:
    """Return how many rows a batch may have in the memory that is free, at most `MOST`.

    Args:
        runtime: The verbalizer's.
        prompt: Tokens of the prompt.
        rest: Tokens of the prompt that every row runs by itself.
        new_tokens: The most tokens of a reply.
    """
    config, dtype = hosts.text_config(runtime.model), hosts.dtype_of(runtime.model)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    token = 2 * config.num_hidden_layers * heads * width * dtype.itemsize
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    # The prompt's keys are there twice when decoding starts; logits also as float32, with noise.
    cached = (2 * prompt + new_tokens) * token
    computed = 4 * rest * inner * dtype.itemsize + config.vocab_size * (dtype.itemsize + 16)
    return max(1, min(MOST, int(runtime.free_bytes() * _SHARE) // (cached + computed)))


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether memory ran out, going by `error` and the errors that caused it."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if _compat.says_out_of_memory(error):
            return True
        error = error.__cause__
    return False
