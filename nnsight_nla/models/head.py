"""Find a language model's head, and give it its rows in one piece.

With `logits_to_keep`, transformers computes the logits of the last positions only, from a slice of
the hidden states. PyTorch multiplies a slice of several rows that is not contiguous with a frozen
matrix row by row, and copies the matrix for each: at 49,152 tokens × 576 in float32, 113 MB a row.
A contiguous copy of the slice costs nothing and is multiplied at once.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..errors import InjectionError
from . import hosts


def head_of(model: Any) -> nn.Module | None:
    """Return the module that computes the logits; ``None`` if the model does not say."""
    return getattr(hosts.module_of(model), "get_output_embeddings", lambda: None)()


def head_envoy(model: Any) -> Any:
    """Return the envoy of the head of an nnsight model.

    Raises:
        InjectionError: `model` does not say which of its modules computes the logits, or that
            module's name is one that nnsight uses.
    """
    head = head_of(model)
    if head is None:
        raise InjectionError(
            f"{hosts.describe(model)} does not say which of its modules computes the logits, so "
            "its next tokens cannot be read."
        )
    try:
        return hosts.envoy_of(model, head)
    except ValueError as error:  # Such as `output` in GIT, which then means the model's own.
        raise InjectionError(
            f"The head of {hosts.describe(model)} has a name that nnsight uses for something else, "
            "so its next tokens cannot be read."
        ) from error


@contextmanager
def contiguous_head(model: Any) -> Generator[None, None, None]:
    """Pass contiguous rows to the head of `model` while the block runs.

    Args:
        model: An nnsight model whose weights are loaded, or a transformers model.
    """
    head = head_of(model)
    handle = None if head is None else head.register_forward_pre_hook(_contiguous)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _contiguous(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (arguments[0].contiguous(), *arguments[1:]) if arguments else arguments
