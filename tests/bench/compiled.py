"""Decode with a compiled forward of constant shapes: CUDA graphs for the fast engine, on trial.

    pytest tests/bench/test_speed.py -s --size 8b --device cuda --batches 64,256 --compiled

Prefill, draws, receipts and texts are the engine's. Only the steps differ: keys and values lie in
transformers' static cache, and one forward is compiled for each of a few numbers of rows. A row
that is finished keeps its place until half of the places are free; then the others move to a cache
of half the size. The caches are kept between batches, because a CUDA graph knows its tensors by
their addresses.

It is not an option of the package, for three reasons. It has not been run on a GPU, and on a CPU a
step takes 2.6 times as long as the engine's (`test_what_a_static_cache_and_compiling_would_give`).
It compiles for every size and every capacity, half a minute each, and holds a second set of keys
and values. And it would need code of its own for sliding windows and for the states of hybrids.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.cache_utils import StaticCache

from nnsight_nla.verbalize.decoding import decode


class CompiledSteps:
    """The model and the cache that `decode` is given, in one."""

    def __init__(
        self,
        module: nn.Module,
        *,
        smallest: int = 8,
        written: Callable[[Tensor, Tensor], Tensor] = lambda ids, logits: logits,
        **compiling: Any,
    ) -> None:
        """Share the weights of `module`; nothing is compiled yet.

        Args:
            module: A transformers model that nnsight has not wrapped; its hooks are left out.
            smallest: The least number of places.
            written: Makes the logits from the token ids and the model's logits.
            compiling: Options for ``torch.compile``.
        """
        shared = {id(each): each for each in chain(module.parameters(), module.buffers())}
        self.module: Any = copy.deepcopy(module, shared)
        for each in self.module.modules():
            each._forward_hooks.clear()
            each._forward_pre_hooks.clear()
        self.forward = torch.compile(self.module.forward, dynamic=False, **compiling)
        self.smallest, self.written = smallest, written
        self.caches: dict[tuple[int, int], StaticCache] = {}

    @contextmanager
    def decoding(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Let the fast engine decode with this while the block runs."""

        def steps(model: Any, *given: Any, **settings: Any) -> Any:
            del model
            return decode(self, *given, **settings)

        with monkeypatch.context() as patch:
            patch.setattr("nnsight_nla.verbalize.verbalizer.in_place", self.hold)
            patch.setattr("nnsight_nla.verbalize.verbalizer.decode", steps)
            yield

    def hold(self, cache: Any, rows: Tensor, capacity: int) -> CompiledSteps:
        """Copy rows of a prefilled cache; a `decode` that is given the result runs on them."""
        self.capacity, self.rows = capacity, len(rows)
        length = cache.get_seq_length()
        self._fill(cache.layers, rows.to(self.module.device), length)
        return self

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows."""
        self.rows, places = len(beam_idx), self.places[beam_idx]
        if self._size() == self.size:
            self.places = places
        else:
            held = self._cache().layers
            self._fill(held, places, int(held[0].cumulative_length))

    def __call__(self, input_ids: Tensor, past_key_values: Any, use_cache: bool) -> Any:
        """Run one token in each row."""
        del past_key_values
        ids = input_ids.new_zeros(self.size, 1)
        ids[self.places] = input_ids
        torch.compiler.cudagraph_mark_step_begin()
        found = self.forward(input_ids=ids, past_key_values=self._cache(), use_cache=use_cache)
        return SimpleNamespace(logits=self.written(input_ids, found.logits[self.places]))

    def _size(self) -> int:
        return max(self.smallest, 1 << (self.rows - 1).bit_length())

    def _cache(self) -> StaticCache:
        key = self.size, self.capacity
        if key not in self.caches:
            self.caches[key] = StaticCache(self.module.config, max_cache_len=self.capacity)
        return self.caches[key]

    def _fill(self, layers: Any, rows: Tensor, length: int) -> None:
        """Copy rows of other layers into the first places of the cache of their number."""
        self.size = self._size()
        self.places = torch.arange(len(rows), device=rows.device)
        every = rows.new_zeros(self.size)
        every[: len(rows)] = rows
        for source, held in zip(layers, self._cache().layers, strict=True):
            keys, values = (
                each[every, :, :length].clone() for each in (source.keys, source.values)
            )
            if not held.is_initialized:
                held.lazy_initialization(keys, values)
            held.keys[:, :, :length], held.values[:, :, :length] = keys, values
            held.cumulative_length.fill_(length)
