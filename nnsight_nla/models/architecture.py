"""Check by shapes alone that a block's residual can be read and written.

Layer K is the output of block K, ``[batch, seq, d_model]``, which block K + 1 reads. Most language
models keep to that; this module finds those that do not (several residual streams, sequence first,
blocks that are skipped or shared, ...) before anything runs. It builds a copy of the model from its
class and configuration whose tensors have no values, and passes token ids through it up to the
block::

    why = refusal(module, 20)       # None: block 20 can be read and written

So there is no list of architectures, and no weights are loaded. Where shapes depend on values, the
rest is decided when the model runs.
"""

from __future__ import annotations

import ast
import inspect
import sys
import traceback
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import _compat
from .blocks import find_blocks, residual_of

BATCH, LENGTH = 3, 5
"""The token ids that are passed through."""


@dataclass(frozen=True)
class Finding:
    """What is known of a module's output before it runs."""

    refused: str | None = None
    """Why it cannot be read and written; ``None`` if it can."""
    is_tensor: bool = False
    """Whether it is a tensor, and not a tuple with the residual; false if that is not known."""


_DECIDED: dict[tuple[type, str, int | None], Finding] = {}
_BY_MODULE: weakref.WeakKeyDictionary[nn.Module, dict[int | None, Finding]] = (
    weakref.WeakKeyDictionary()
)


class _Enough(Exception):  # noqa: N818  (It is no error.)
    """What was to be seen has been seen."""


def finding(module: nn.Module, layer: int | None) -> Finding:
    """Find out what a block returns; this is done once for each configuration.

    Args:
        module: A transformers model, with or without weights, possibly wrapped by PEFT.
        layer: The block; ``None`` for the token embedding.
    """
    known = _BY_MODULE.setdefault(module, {})
    if layer not in known:
        config: Any = module.config
        key = type(module), config.to_json_string(use_diff=False), layer
        if key not in _DECIDED:
            why = _not_causal(module, config) or _own_positions(module)
            _DECIDED[key] = Finding(why) if why else _shapes(module, layer)
        known[layer] = _DECIDED[key]
    return known[layer]


def refusal(module: nn.Module, layer: int | None) -> str | None:
    """Return why the output of a block cannot be read and written; ``None`` if it can."""
    return finding(module, layer).refused


def _not_causal(module: nn.Module, config: Any) -> str | None:
    """Return that tokens see later ones, if the configuration says so and the model uses it."""
    text, name = config.get_text_config(), type(module).__name__
    advice = "A residual must depend on the tokens before it only"
    if getattr(text, "use_bidirectional_attention", None) in (True, "all"):
        return f"{name} has use_bidirectional_attention. {advice}."
    base = getattr(module, "get_base_model", lambda: module)()
    if getattr(text, "is_decoder", None) is False and _reads(type(base), "is_decoder"):
        return f"{name} is an encoder. {advice}: set is_decoder=True in its configuration."
    return None


def _own_positions(module: nn.Module) -> str | None:
    """Return that positions are numbered in two ways, as RoBERTa's are."""
    if any(hasattr(each, "create_position_ids_from_input_ids") for each in module.modules()):
        return (
            "it numbers positions from the padding token's id, but nnsight's batches and "
            "generate() number them from 0, so one text has several residuals."
        )
    return None


def _reads(kind: type, name: str) -> bool:
    """Return whether the code of a model reads an attribute; GPT-NeoX has it only in an example."""
    try:
        tree = ast.parse(inspect.getsource(sys.modules[kind.__module__]))
    except (OSError, TypeError, KeyError):
        return False
    return any(
        isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
        for node in ast.walk(tree)
    )


def _shapes(module: nn.Module, layer: int | None) -> Finding:
    """Pass token ids through a copy without values, with symbols for sizes if that is needed."""
    for symbolic in (False, True):
        with _quiet(), torch.no_grad(), _compat.without_values(symbolic=symbolic):
            copy: Any = _compat.skeleton(module)
            if copy is None:
                return Finding()
            table, seen = copy.get_input_embeddings(), _Seen()
            if not isinstance(table, nn.Embedding):
                kind = type(table).__name__
                return Finding(f"its token embedding is a {kind}, not one nn.Embedding.")
            if layer is None:
                table.register_forward_hook(seen.after)
                table.register_forward_hook(seen.enough)
            else:
                blocks = find_blocks(copy)[1]
                blocks[layer].register_forward_hook(seen.after)
                for each in blocks[layer + 1 : layer + 2]:
                    each.register_forward_pre_hook(seen.enough, with_kwargs=True)
            try:
                copy(
                    input_ids=torch.ones(BATCH, LENGTH, dtype=torch.long, device="cpu"),
                    **_no_cache(copy),
                )
            except _Enough:
                pass
            except Exception as error:
                if seen.outputs:
                    pass
                elif _compat.depends_on_values(error):
                    continue
                elif isinstance(error, TypeError | ValueError) and _raised_by_model(error):
                    why = f"{type(error).__name__}: {error}"
                    return Finding(f"it does not run on token ids alone ({why}).")
                else:
                    return Finding()
            what = "the token embedding" if layer is None else f"block {layer}"
            why = seen.refusal(what, int(copy.config.get_text_config().hidden_size))
            return Finding(why, is_tensor=seen.is_tensor)
    return Finding()


class _Seen:
    """What went through one module, and whether the next block reads it."""

    def __init__(self) -> None:
        self.outputs: list[Any] = []
        self.next_inputs: list[Any] | None = None

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        self.outputs.append(output)

    def enough(self, module: nn.Module, args: Any, given: Any) -> None:
        del module
        if self.outputs:
            values = given.values() if isinstance(given, dict) else ()
            self.next_inputs = [*args, *values]
            raise _Enough

    @property
    def is_tensor(self) -> bool:
        return bool(self.outputs) and isinstance(self.outputs[0], Tensor)

    def refusal(self, what: str, d_model: int) -> str | None:
        """Return why what was seen is not a residual that can be read and written."""
        wanted = [BATCH, LENGTH, d_model]
        if not self.outputs:
            return f"{what} is not run for a text."
        if len(self.outputs) > 1:
            return f"{what} is run {len(self.outputs)} times for one text."
        (output,) = self.outputs
        residual = residual_of(output)
        if not isinstance(residual, Tensor) or list(residual.shape) != wanted:
            shape = _described(residual)
            return (
                f"{what} returns {shape} for {BATCH} texts of {LENGTH} tokens; expected one "
                f"residual stream, {wanted}."
            )
        if what == "the token embedding" or self.next_inputs is None:
            return None
        others = [] if isinstance(output, Tensor) else output[1:]
        read = [each for each in self.next_inputs if isinstance(each, Tensor)]
        if not any(each is residual for each in read):
            return f"{what} returns something else than the next block reads."
        for other in others:
            same = isinstance(other, Tensor) and list(other.shape) == wanted
            if same and any(each is other for each in read):
                return f"{what} returns several residual streams, which the next block reads."
        return None


def _described(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _no_cache(model: nn.Module) -> dict[str, bool]:
    known = inspect.signature(model.forward).parameters
    return {"use_cache": False} if "use_cache" in known else {}


def _raised_by_model(error: BaseException) -> bool:
    """Return whether transformers' own code raised `error`, and not a kernel that it called."""
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [file for file in frames if "torch" not in Path(file).parts]
    return bool(own) and "transformers" in Path(own[-1]).parts


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what transformers logs about configurations and missing kernels."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity(50)  # Critical.
    try:
        yield
    finally:
        logging.set_verbosity(level)
