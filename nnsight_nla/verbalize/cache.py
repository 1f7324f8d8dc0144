"""A cache of keys and values that is written in place.

transformers' own cache layer copies all keys and values at every token. That took two fifths of a
step at 32 rows (12 layers of 512, two cores). `in_place` replaces the layers of a prefilled cache::

    cache = in_place(cache, rows, capacity)     # room for `capacity` tokens in each row

The states of linear attention, which every token overwrites, stay transformers' own (see `states`).

transformers' static cache needs a mask: a step took 113 ms where this one takes 43 (12 layers of
512), and 111 compiled, after 37 s of compiling (tests/bench/test_speed.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer, LinearAttentionLayer

if TYPE_CHECKING:
    from jaxtyping import Int


class Slots(DynamicLayer):
    """A cache layer with room for the full reply, written in place."""

    def __init__(self, layer: Any, rows: Int[Tensor, " rows"], capacity: int) -> None:
        """Copy rows of a prefilled layer; `capacity` is in tokens."""
        vars(self).update(vars(layer))
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
        """Append the keys and values of the new tokens."""
        rows, end = len(key_states), self.length + key_states.shape[-2]
        self.all_keys[:rows, :, self.length : end] = key_states
        self.all_values[:rows, :, self.length : end] = value_states
        self.length = end
        return self._show(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows; those that keep their index are not copied."""
        indices = beam_idx.to(self.device)
        to = torch.arange(len(indices), device=self.device)
        to = to[indices != to]
        for each in (self.all_keys, self.all_values):
            each[to, :, : self.length] = each[indices[to], :, : self.length]
        self._show(len(indices))

    def _show(self, rows: int) -> tuple[Tensor, Tensor]:
        keys = self.keys = self.all_keys[:rows, :, : self.length]
        values = self.values = self.all_values[:rows, :, : self.length]
        return keys, values

    @staticmethod
    def _room(states: Tensor, rows: Tensor, capacity: int) -> Tensor:
        _, heads, length, width = states.shape
        room = states.new_empty(len(rows), heads, capacity, width)
        room[:, :, :length] = states[rows]
        return room


class SlotsAndState(Slots, LinearAttentionLayer):
    """The same for a layer that also keeps the state of linear attention, as in Falcon-H1."""

    def __init__(self, layer: Any, rows: Int[Tensor, " rows"], capacity: int) -> None:
        """Copy rows of a prefilled layer; `capacity` is in tokens."""
        Slots.__init__(self, layer, rows, capacity)
        self._select_states(rows)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows of keys, values and states."""
        Slots.reorder_cache(self, beam_idx)
        self._select_states(beam_idx)

    def _select_states(self, rows: Any) -> None:
        LinearAttentionLayer.reorder_cache(self, rows)


def in_place(cache: Any, rows: Int[Tensor, " rows"], capacity: int) -> Any:
    """Return `cache` with the given rows, to be written in place from now on.

    Args:
        cache: A prefilled `DynamicCache`; its layers are replaced.
        rows: The rows to continue with; a row may be repeated.
        capacity: The maximum number of tokens in a row, including the prompt. If a sliding window
            is shorter, transformers' own layers are kept.
    """
    windows = [getattr(layer, "sliding_window", None) or capacity for layer in cache.layers]
    if min(windows) < capacity:
        cache.reorder_cache(rows)
        return cache
    for number, layer in enumerate(cache.layers):
        if not isinstance(layer, DynamicLayer):
            layer.reorder_cache(rows)
        elif layer.is_initialized:  # A block that reads an image is skipped.
            kind = SlotsAndState if isinstance(layer, LinearAttentionLayer) else Slots
            cache.layers[number] = kind(layer, rows, capacity)
    return cache
