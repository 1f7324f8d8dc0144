"""Decode many rows fast: compute shared tokens once, and drop rows that are finished.

A verbalizer's prompt is the same in every row up to the marker, so the keys and values before it
are computed for one row and repeated. The vector is written in the prefill of the remaining prompt;
after that, a row is a cache and its last token, and decoding needs no hooks::

    cache = DynamicCache(config)            # one row, the tokens before the marker
    repeat(cache, rows)                     # then the rest of the prompt runs, with the vectors
    for row, ids, end in decode(model, logits, in_place(cache, ...), ...):
        ...                                 # rows arrive in the order in which they finish

All rows of a batch have the same length, so there is no padding and no mask. The cache may keep
states, too, as those of hybrid models do (see `states`). `decode` also runs on NDIF hosts, with
transformers' own cache, so it may use only torch and names in this file.

Refilling a batch with waiting vectors was measured and left out (tests/bench/test_speed.py, 32 rows
on two cores, no GPU). It needs a mask, with which grouped-query models copy their keys and values.
Full batches compared with rows that leave: x0.72 for 12 layers of 512, x1.14 for the tiny pair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from transformers.cache_utils import (
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from .. import _compat
from ..errors import VerbalizationError, shown
from ..models import hosts
from ..models.head import head_of
from .states import known_reach, state_bytes, state_layers

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..models.runtime import Runtime

Engine = Literal["fast", "generate"]
MOST = 128
"""The maximum number of rows with ``batch_size="auto"``."""
AT_A_HOST = 64
"""Rows in a remote request, because the host's memory is unknown."""
_SELECTED = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
)
"""The cache layers that `reorder_cache` is known to select by row, completely."""
_SHARE = 0.6  # Of the free memory: the estimate ignores rounding by allocators and other processes.


def check_engine(given: object) -> Engine:
    """Check the name of an engine.

    Raises:
        VerbalizationError: The name is neither ``"fast"`` nor ``"generate"``.
    """
    if given in get_args(Engine):
        return given  # type: ignore[return-value]
    raise VerbalizationError(f"engine={shown(given)}: expected 'fast' or 'generate'.")


def unfit(av: Any) -> str | None:
    """Return why `av` cannot be decoded fast, ``None`` if it can; loads no weights."""
    model, config = hosts.module_of(av), hosts.text_config(av)
    name, cache = type(model).__name__, DynamicCache(config=config)
    if not _compat.takes_dynamic_cache(model):
        return f"{name} takes no DynamicCache of transformers"
    others = {type(layer).__name__ for layer in cache.layers if type(layer) not in _SELECTED}
    if others:
        return f"the cache of {name} has unsupported layers: {sorted(others)}"
    if _compat.is_stateful(model) and not state_layers(cache):
        return f"{name} keeps a state outside of its cache, which cannot be selected by row"
    if not any(isinstance(layer, CacheLayerMixin) for layer in cache.layers):
        return f"the cache of {name} has no attention, so that it does not count its tokens"
    if known_reach(model) == "none":
        return f"{name} does not continue from its cache as from the tokens in it"
    if _compat.has_edits(av):
        return "the verbalizer has edits, which act only in nnsight's own generate"
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
    stops: Callable[[int, list[int]], bool] | None = None,
) -> Iterator[tuple[int, list[int], int | None]]:
    """Continue from a prefill, and drop each row when it is finished.

    Args:
        model: Called like the forward of a causal language model.
        logits: The prefill's logits for the first token of each row.
        cache: The prefill's; ``reorder_cache`` selects its rows. Invalid afterwards.
        processors: Logits processors; one with ``keep`` is called with the rows that continue.
        closed: Returns whether a row's tokens contain the closing tag.
        ends: Ids that end a reply and are not part of it.
        limit: The maximum number of tokens in a row.
        stops: Called after each step with the number and the tokens of each row that is not
            finished; a row for which it returns true is dropped, and nothing is yielded for it.

    Yields:
        A row's number, its tokens, and the end-of-sequence token that ended it, if one did.
    """
    active = list(range(len(logits)))
    written: list[list[int]] = [[] for _ in active]
    while True:
        # Processors draw on the CPU in float32, so that draws are the same on every device.
        scores = processors(None, logits.float())
        tokens = scores.argmax(dim=-1)
        left: list[int] = []
        for index, token in enumerate(tokens.tolist()):
            row = active[index]
            if token in ends:
                yield row, written[row], token
                continue
            written[row].append(token)
            if closed(written[row]) or len(written[row]) == limit:
                yield row, written[row], None
            elif stops is None or not stops(row, written[row]):
                left.append(index)
        if not left:
            return
        if len(left) < len(active):
            # The last rows fill the gaps of finished rows, so that most rows are not copied.
            moved = iter([index for index in left if index >= len(left)])
            stay = set(left)
            order = [index if index in stay else next(moved) for index in range(len(left))]
            active = [active[index] for index in order]
            chosen = torch.tensor(order, device=tokens.device)
            tokens = tokens[chosen]
            cache.reorder_cache(chosen)
            for processor in processors:
                if hasattr(processor, "keep"):
                    processor.keep(order)
        with torch.inference_mode():
            output = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
        logits = output.logits[:, -1]


class Closing:
    """Detect the end of a reply: its closing tag, or what comes before it where `upto` says so.

    Only a token that contains the tag's last character can close it. This is looked up once per
    token; if it does, the end of the row is decoded.
    """

    def __init__(
        self,
        tokenizer: Any,
        tag: str | None,
        *,
        opening: str = "",
        opened: str = "",
        upto: Any = None,
    ) -> None:
        self.tokenizer, self.tag = tokenizer, tag
        self.opening, self.opened, self.upto = opening, opened, upto
        self.may_close: dict[int, bool] = {}

    def __call__(self, ids: list[int]) -> bool:
        """Return whether a reply ends with the last of `ids`."""
        return self.is_closed(ids) or self.is_cut(ids)

    def is_closed(self, ids: list[int]) -> bool:
        """Return whether the text of the last `ids` contains the tag; without a tag, never."""
        if self.tag is None:
            return False
        last = ids[-1]
        if last not in self.may_close:
            self.may_close[last] = self.tag[-1] in self.tokenizer.decode([last])
        if not self.may_close[last]:
            return False
        tail = ids[-2 * len(self.tag) :]
        return self.tag in self.tokenizer.decode(tail, skip_special_tokens=True)

    def is_cut(self, ids: list[int]) -> bool:
        """Return whether a reply has the first line, or the number of tokens, of `upto`."""
        if self.upto is None:
            return False
        if self.upto != "line":
            return len(ids) >= self.upto and len(ids) - self.start(ids) >= self.upto
        text = self.tokenizer.decode(ids[self.start(ids) :], skip_special_tokens=True)
        return "\n" in text.lstrip()

    def start(self, ids: list[int]) -> int:
        """Return the number of tokens of an opening tag and of the white space after it."""
        decode, count = self.tokenizer.decode, 0
        text = decode(ids, skip_special_tokens=True).lstrip()
        if self.opened or not text.startswith(self.opening):
            begins = not self.opened and self.opening.startswith(text)  # It may become the tag.
            return len(ids) if begins else 0
        while self.opening not in decode(ids[:count], skip_special_tokens=True):
            count += 1
        while count < len(ids) and not decode([ids[count]]).strip():
            count += 1
        return count


class ClosedRows:
    """A stopping criterion of ``generate``: the rows whose reply has its closing tag.

    transformers' own stop strings do not work with every tokenizer.
    """

    def __init__(self, closed: Closing, start: int) -> None:
        self.closed, self.start = closed, start

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
        """Return whether each row of ``[rows, seq]`` is closed; replies begin at `start`."""
        found = [self.closed(ids) for ids in input_ids[:, self.start :].tolist()]
        return torch.tensor(found, dtype=torch.bool, device=input_ids.device)


def rows_that_fit(runtime: Runtime, *, prompt: int, rest: int, new_tokens: int) -> int:
    """Return how many rows a batch may have in the memory that is free, at most `MOST`.

    Args:
        runtime: The verbalizer's.
        prompt: Tokens of the prompt.
        rest: Tokens of the prompt that are run for every row.
        new_tokens: The maximum number of tokens in a reply.
    """
    config, dtype = hosts.text_config(runtime.model), hosts.dtype_of(runtime.model)
    # A model without attention has no such heads.
    queries = _largest(config, "num_attention_heads") or 1
    heads = _largest(config, "num_key_value_heads") or queries
    width = _largest(config, "head_dim") or config.hidden_size // queries
    layers = DynamicCache(config=config).layers
    attends = sum(isinstance(each, CacheLayerMixin) for each in layers)
    token = 2 * attends * heads * width * dtype.itemsize
    inner = _largest(config, "intermediate_size") or 4 * config.hidden_size
    # When decoding starts there are two copies of the prompt's keys; logits also in float32. A step
    # makes new states from the old ones.
    cached = (2 * prompt + new_tokens) * token
    cached += 2 * state_bytes(hosts.module_of(runtime.model), config)
    computed = 4 * rest * inner * dtype.itemsize + config.vocab_size * (dtype.itemsize + 16)
    if head_of(runtime.model) is None:  # Its matrix is copied for each row; see `head`.
        computed += config.vocab_size * config.hidden_size * dtype.itemsize
    return max(1, min(MOST, int(runtime.free_bytes() * _SHARE) // (cached + computed)))


def _largest(config: Any, name: str) -> int:
    """Return a number of the configuration, 0 without one; of a list by layer, the largest."""
    try:
        value = getattr(config, name, None) or 0
    except RuntimeError:  # Of Gemma 4: blocks differ, and the configuration has no one number.
        value = [getattr(each, name, None) or 0 for each in config.per_layer_config]
    return max(value) if isinstance(value, list | tuple) else int(value)


def out_of_memory(error: BaseException | None) -> bool:
    """Return whether `error`, or an error that caused it, says that memory ran out."""
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        if _compat.says_out_of_memory(error):
            return True
        error = error.__cause__
    return False
