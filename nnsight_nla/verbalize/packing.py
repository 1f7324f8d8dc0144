"""Weights laid out for the processor, for as long as a batch is decoded on it.

A step of decoding multiplies a few rows with every weight of the model. In float32 on a CPU,
PyTorch's own product takes 34 ms of a step for 4 rows where it takes 40 for 32 (12 layers of 512,
two cores of an AMD EPYC), so a batch that empties hardly gets faster. oneDNN, which PyTorch
ships too, does about twice as much at 4 to 32 rows, given the weights in a layout of its own::

    with packed(model, rows):
        for ... in decode(model, ...):
            ...

The layout is a copy, made again for each batch, so that it is never behind the weights: it costs
about one step. The products are the same but for the order of their sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..models.memory import free_bytes

_SHARE = 0.25  # Of what is free when a batch has its room: `engine` leaves more than that.


@contextmanager
def packed(model: nn.Module, rows: int) -> Iterator[None]:
    """Let the linear layers of `model` multiply by packed weights while the block lasts.

    Nothing happens where that gains nothing or cannot be: one row alone, another device, dtype or
    kind of processor, a PyTorch without oneDNN, or too little free memory for the copy. A layer
    whose forward is not its class's any more (patched, or moved about by accelerate) keeps it.

    Args:
        model: Called as it is, outside of any trace, in inference mode.
        rows: How many rows a step has at first.
    """
    layers = _layers(model) if rows > 1 else []
    needed = sum(each.weight.nbytes for each in layers)
    if needed and needed > free_bytes(torch.device("cpu")) * _SHARE:
        layers = []
    before: list[tuple[nn.Linear, Any]] = []
    try:
        for layer in layers:
            # nnsight keeps its own entry point there: inert outside of a trace, and put back.
            before.append((layer, layer.__dict__.get("forward")))
            layer.__dict__["forward"] = _product(layer, rows)
        yield
    finally:
        for layer, forward in before:
            if forward is None:
                del layer.__dict__["forward"]
            else:
                layer.__dict__["forward"] = forward


def available() -> bool:
    """Whether this is an x86 processor, and a PyTorch with oneDNN; others were not measured."""
    return (
        torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _layers(model: nn.Module) -> list[nn.Linear]:
    from nnsight.intervention.source import Controller

    def plain(layer: nn.Linear) -> bool:
        forward = layer.__dict__.get("forward")
        if isinstance(forward, Controller) and "_hf_hook" not in layer.__dict__:
            return forward.state.original is nn.Linear.forward
        return forward is None

    if not available():
        return []
    return [
        each
        for each in model.modules()
        if type(each) is nn.Linear
        and each.weight.dtype == torch.float32
        and each.weight.device.type == "cpu"
        and plain(each)
    ]


def _product(layer: nn.Linear, rows: int) -> Callable[[Tensor], Tensor]:
    # What torch.compile makes of a linear layer on a CPU.
    multiply = torch.ops.mkldnn._linear_pointwise
    weight = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), rows)
    bias = layer.bias

    def product(states: Tensor) -> Tensor:
        return multiply(states, weight, bias, "none", [], "")

    return product
