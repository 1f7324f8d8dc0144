"""Share a prompt between rows of a model that also keeps states, not only keys and values.

A block of linear attention, of a state-space model or of a short convolution keeps one state per
row, of a fixed size, which every token overwrites. Hybrids (Qwen3-Next, Qwen3.5, Falcon-H1, LFM2)
have such blocks among or next to attention. A state can be repeated and selected by row like keys
and values::

    repeat(cache, rows)                  # after the shared tokens
    cache.reorder_cache(rows)            # when rows leave

A pad would change a state, so no row has any: all rows have the same prompt, and replies grow token
by token. The tokens after the shared ones are run in one pass that starts from a state. Some models
(Jamba, Zamba) start such a pass from nothing, and Bamba counts its positions from 0 again; `reach`
finds that out by running the prompt.
"""

from __future__ import annotations

import weakref
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, LinearAttentionCacheLayerMixin

from .. import _compat

if TYPE_CHECKING:
    from jaxtyping import Int

Reach = Literal["several", "one", "none"]
"""How many tokens a pass from a cache may have, to give what one pass over all tokens gives."""

_REACH: weakref.WeakKeyDictionary[nn.Module, Reach] = weakref.WeakKeyDictionary()
_BYTES: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


def state_layers(cache: Any) -> list[LinearAttentionCacheLayerMixin]:
    """Return the layers of a cache that keep states."""
    return [each for each in cache.layers if isinstance(each, LinearAttentionCacheLayerMixin)]


def keeps_states(config: Any) -> bool:
    """Return whether the cache of a model with this configuration keeps states."""
    return bool(state_layers(DynamicCache(config=config)))


def repeat(cache: Any, rows: int) -> None:
    """Repeat the only row of a cache `rows` times, states included."""
    cache.reorder_cache(torch.zeros(rows, dtype=torch.long, device="cpu"))


def reach(module: nn.Module, config: Any, ids: Int[Tensor, "1 tokens"], start: int) -> Reach:
    """Find out how many tokens a pass from the states of a cache may have; this is tried once.

    Args:
        module: A transformers model whose cache keeps states, with its weights.
        config: The configuration that the cache is made from.
        ids: A prompt, on the model's device.
        start: Where a pass over several tokens is to start.
    """
    if module not in _REACH:
        _REACH[module] = _tried(module, config, ids, start)
    return _REACH[module]


def known_reach(module: nn.Module) -> Reach | None:
    """Return what `reach` found, ``None`` before."""
    return _REACH.get(module)


@torch.no_grad()
def _tried(module: Any, config: Any, ids: Tensor, start: int) -> Reach:
    def last(first: int, *, forget: bool = False) -> Tensor:
        """Run the first tokens and then the others; return the last logits."""
        cache = DynamicCache(config=config)
        if first:
            module(input_ids=ids[:, :first], past_key_values=cache, use_cache=True)
        if forget:
            for layer in state_layers(cache):
                LinearAttentionCacheLayerMixin.reset(layer)
        output = module(input_ids=ids[:, first:], past_key_values=cache, use_cache=True)
        return output.logits[0, -1].float()

    whole = last(0)
    # How much rounding may change, compared with forgetting the states.
    share = torch.finfo(module.dtype).eps ** 0.5

    def equal(first: int) -> bool:
        forgotten = (last(first, forget=True) - whole).norm()
        return bool((last(first) - whole).norm() < share * forgotten)

    if start and equal(start):
        return "several"
    return "one" if equal(ids.shape[1] - 1) else "none"


def state_bytes(module: nn.Module, config: Any) -> int:
    """Return the bytes of one row's states, as far as shapes alone decide them."""
    if module not in _BYTES:
        _BYTES[module] = _counted(module) if keeps_states(config) else 0
    return _BYTES[module]


def _counted(module: nn.Module) -> int:
    """Pass two tokens through a copy without values, and count what its cache holds."""
    with torch.no_grad(), _compat.without_values():
        copy: Any = _compat.skeleton(module)
        if copy is None:
            return 0
        cache = DynamicCache(config=copy.config)
        with suppress(Exception):  # A pass whose shapes depend on values ends early.
            ids = torch.ones(1, 2, dtype=torch.long, device="cpu")
            copy(input_ids=ids, past_key_values=cache, use_cache=True)
        kept = ((each.conv_states, each.recurrent_states) for each in state_layers(cache))
        states = chain.from_iterable(each.values() for pair in kept for each in pair)
        return sum(each.nbytes for each in states if each is not None)
