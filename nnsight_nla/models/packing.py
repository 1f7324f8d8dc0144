"""Lay a model's weights out for the processor, for as long as many rows run through it.

A step of decoding multiplies a few rows with every weight of the model. In float32 PyTorch leaves
that to MKL, which is slow on AMD's processors. oneDNN, which PyTorch ships too, takes between a
seventh and half of the time there, given the weights in a layout of its own: explanations come 1.8
times as fast at 32 rows, and 1.5 times without AVX-512 (12 layers of 512, two cores of an EPYC;
tests/bench/test_speed.py). In bfloat16 PyTorch calls oneDNN itself, and packs the weights again in
every call: without that, a product takes .5 of the time for a row and .8 for 32::

    with packed(model, rows):
        for ... in decode(model, ...):
            ...

The layout is a copy that is made for each batch, so it is never behind the weights; making it takes
about as long as one step. The products are the same but for the order of their sums.

A LoRA adapter is added to the weights in the copy, so that it costs nothing in a step. In bfloat16
the sum is rounded to bfloat16, as in a verbalizer whose adapter was merged.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _compat
from .memory import free_bytes

_SHARE = 0.25
"""The most of the free memory that the copy may take; `rows_that_fit` leaves more than that."""


@contextmanager
def packed(model: nn.Module, rows: int) -> Generator[None, None, None]:
    """Let the linear layers of `model` multiply by packed weights while the block runs.

    Nothing happens where it gains nothing or is not possible: for one row in float32 without an
    adapter, on another device, dtype or kind of processor, and with too little free memory for the
    copy. A layer whose forward was replaced, by the user or by accelerate, keeps it.

    Args:
        model: It is called without gradients, and in no trace that reads or edits a linear layer.
        rows: The number of rows in most of the calls.
    """
    layers = _layers(model, rows)
    needed = sum(_base(each).weight.nbytes for each in layers)
    if needed and needed > free_bytes(torch.device("cpu")) * _SHARE:
        layers = []
    before: list[tuple[nn.Module, Any]] = []
    try:
        for layer in layers:
            # nnsight keeps its own entry point there: inert outside of a trace, and put back.
            before.append((layer, vars(layer).get("forward")))
            weight, bias = _merged(layer)
            vars(layer)["forward"] = _compat.packed_product(weight, bias, rows)
        yield
    finally:
        for layer, forward in before:
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


def available() -> bool:
    """Return whether packing gains time here: on an AMD processor, under Linux."""
    return _vendor() == "AuthenticAMD" and _compat.can_pack()


@cache
def _vendor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    found = (line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id"))
    return next(found, None)


def _layers(model: nn.Module, rows: int) -> list[nn.Module]:
    """Return the linear layers, and in place of their parts those with a LoRA adapter."""
    if not available():
        return []
    narrow = {torch.bfloat16} if _compat.can_pack_bfloat16() else set()
    every = {torch.float32, *narrow}
    adapted = [
        each
        for each in model.modules()
        if _compat.is_plain_lora(each) and _fits(_base(each), every)
    ]
    inside = set(chain.from_iterable(each.modules() for each in adapted))
    plain = (each for each in model.modules() if each not in inside)
    dtypes = every if rows > 1 else narrow
    return [*adapted, *(each for each in plain if type(each) is nn.Linear and _fits(each, dtypes))]


def _fits(layer: nn.Linear, dtypes: set[torch.dtype]) -> bool:
    return (
        layer.weight.dtype in dtypes
        and layer.weight.device.type == "cpu"
        and _compat.runs_own_forward(layer)
    )


def _base(layer: Any) -> nn.Linear:
    return layer if type(layer) is nn.Linear else layer.get_base_layer()


def _merged(layer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return weight and bias of a linear layer, with its adapters added in float32."""
    base = _base(layer)
    weight = base.weight.detach()
    if base is not layer:
        for name in layer.active_adapters:
            if name in layer.lora_A:
                down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
                down, up = down.detach().float(), up.detach().float()
                weight = torch.addmm(weight.float(), up, down, alpha=layer.scaling[name])
    return weight.to(base.weight.dtype), base.bias
