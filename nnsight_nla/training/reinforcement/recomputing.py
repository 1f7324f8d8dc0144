"""Recompute activations in the backward pass (gradient checkpointing), without dropout."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any


@contextmanager
def recomputing(module: Any, *, on: bool) -> Generator[None, None, None]:
    """Let blocks discard their activations while the block runs.

    transformers does so in training mode only. The mode of the blocks alone is changed: below them
    there may be dropout, with which the texts would be scored by another policy than drew them.
    """
    blocks = [each for each in module.modules() if hasattr(each, "gradient_checkpointing")]
    if not on:
        yield
        return
    # The reentrant kind loses the gradients of adapters on a frozen embedding.
    module.gradient_checkpointing_enable({"use_reentrant": False})
    for each in blocks:
        each.training = True
    try:
        yield
    finally:
        module.eval()
        module.gradient_checkpointing_disable()
