"""Find the parts of an nnsight model that an NLA uses: blocks, embedding, real token positions.

The functions take an nnsight `TransformersModel`: the target, the verbalizer or the reconstructor.
Layer K is the **output of block K**, counted from 0 (``hidden_states[K + 1]``). Blocks are found by
structure (the module list with as many entries as the configuration has layers), so one function
serves every architecture.

nnsight pads the shorter prompts of a batch on the left (or on the side that
``tokenizer.padding_side`` names): ``output[0, 0]`` of a short prompt is then the residual of a
*pad* token. `positions` returns the real ones::

    short, long = positions(model, ["Paris", "The Eiffel Tower is in"])
    residual = layer.output[0, short.slice]      # no pads, in every batch
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import nn

from .. import _compat
from ..core.numeric import is_int
from ..errors import InjectionError, shown
from .architecture import Finding, finding
from .blocks import find_blocks, residual_envoy
from .prompts import FLAT, checked, listed, rendering

if TYPE_CHECKING:
    from nnsight import TransformersModel


Side = Literal["left", "right"]
"""The side that a batch is padded on."""
FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
"""The names of the norm after the last block, a sibling of the blocks."""

_KEPT = {"past_key_values", "cache_params", "state"}
"""Arguments of a forward that hold what is kept of earlier tokens."""


@dataclass(frozen=True)
class Positions:
    """The real tokens of one prompt, in a batch that is padded on one side."""

    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    tokens: tuple[str, ...]
    """The text of each token."""
    side: Side = "left"
    """The side that the batch is padded on."""

    @property
    def slice(self) -> slice:
        """The real positions along the sequence axis, valid in every batch padded on `side`."""
        count = len(self.ids)
        return slice(0, count) if self.side == "right" or not count else slice(-count, None)

    @property
    def positions(self) -> range:
        """0, 1, 2, ... for each real token."""
        return range(len(self.ids))


def positions(
    model: TransformersModel,
    prompts: str | Sequence[Any],
    *,
    padding_side: Side | None = None,
    prepend_bos: bool | None = None,
) -> list[Positions]:
    """Return the real positions of each prompt, as `model` itself tokenizes it.

    Args:
        model: The model that will run the prompts, as invokes or as one list.
        prompts: A prompt or a list of them; each is a string, a list of token ids, or a list of
            chat messages.
        padding_side: The side that the batch is padded on; the tokenizer's unless given.
        prepend_bos: For a `TransformerBridge` only.

    Returns:
        One `Positions` per prompt, in order.

    Raises:
        InjectionError: One of them is not a prompt, or an option does not fit.
    """
    if prepend_bos is not None:
        raise InjectionError(
            f"prepend_bos={shown(prepend_bos)} is for a TransformerBridge; an nnsight model's "
            "prompts begin as its tokenizer makes them. For another beginning, trace token ids and "
            "pass them here: nla.positions(model, [ids])."
        )
    text_config(model)  # Refuses what is not a model.
    side = checked_side(padding_side, _compat.padding_side(model))
    return [replace(tokenized(model, prompt), side=side) for prompt in listed(prompts)]


def tokenized(model: TransformersModel, prompt: Any, *, advice: str = FLAT) -> Positions:
    """Return the tokens of one prompt, as `model` makes them in a trace.

    Raises:
        InjectionError: It is not one prompt, or the tokenizer refuses it.
    """
    vocabulary = getattr(text_config(model), "vocab_size", None) or len(model.tokenizer)
    given = checked(prompt, int(vocabulary), advice=advice)
    if given == []:
        return Positions((), ())
    with rendering(given, describe(model)):
        (row,) = _compat.tokenized(model, given)
    return spelled(model.tokenizer, row["input_ids"].flatten().tolist())


def spelled(tokenizer: Any, ids: Iterable[int]) -> Positions:
    """Return token ids, each with its text."""
    ids = tuple(ids)
    return Positions(ids, tuple(tokenizer.decode([token]) for token in ids))


def checked_side(given: object, default: str) -> Side:
    """Return ``padding_side=``, or the tokenizer's own.

    Raises:
        InjectionError: It is neither ``"left"`` nor ``"right"``.
    """
    if given is not None and given not in ("left", "right"):
        raise InjectionError(f"padding_side={shown(given)}: expected 'left' or 'right'.")
    return "right" if (given or default) == "right" else "left"


def context(model: TransformersModel) -> tuple[int | None, bool]:
    """Return the longest text that `model` was built for, in tokens, and whether it ends there.

    A model with a learned vector for each position cannot run a longer text; others can, with
    residuals that nobody trained.
    """
    config, module = text_config(model), module_of(model)
    longest = getattr(config, "max_position_embeddings", None)
    if not is_int(longest, 1):
        return None, False
    tables = [each for each in module.modules() if isinstance(each, nn.Embedding)]
    words = cast("Any", module).get_input_embeddings()
    # OPT and its kin have two more rows than positions.
    ends = any(0 <= each.num_embeddings - longest <= 2 for each in tables if each is not words)
    return longest, ends


def block(model: TransformersModel, layer: int) -> Any:
    """Return the envoy (for a plain module, the module) of block `layer`.

    The envoy's ``output`` is the residual, also where the block returns a tuple (see `blocks`).

    Raises:
        InjectionError: `model` is not a supported language model, or has no such block, or the
            block's output is not the residual (see `architecture`).
    """
    path, blocks = _blocks(model)
    if not 0 <= layer < len(blocks):
        raise InjectionError(
            f"{describe(model)} has blocks 0 to {len(blocks) - 1} (at {path}); block {layer} was "
            "requested. Use the model that the verbalizer was trained for."
        )
    found = _check_served(model, layer)
    envoy = _envoy(model, path)[layer]
    return envoy if found.is_tensor or isinstance(envoy, nn.Module) else residual_envoy(envoy)


def embedding(model: TransformersModel) -> Any:
    """Return the envoy (or module) of the token embedding.

    Raises:
        InjectionError: `model` is not a supported language model, or its embedding's output is
            not as wide as its residual.
    """
    text_config(model)
    _check_served(model, None)
    return envoy_of(model, cast("Any", module_of(model)).get_input_embeddings())


def envoy_of(model: TransformersModel, module: nn.Module) -> Any:
    """Return the envoy of a module of `model`; for a plain module, the module."""
    path = next(name for name, each in module_of(model).named_modules() if each is module)
    return _envoy(model, path)


def final_norm_path(model: TransformersModel) -> str:
    """Return the path of the norm after the last block, a sibling of the blocks.

    Raises:
        InjectionError: No sibling has a known name.
    """
    path, _ = _blocks(model)
    parent = path.rpartition(".")[0]
    decoder = module_of(model).get_submodule(parent)
    name = next((name for name in FINAL_NORMS if hasattr(decoder, name)), None)
    if name is None:
        names = ", ".join(name for name, _ in decoder.named_children())
        raise InjectionError(
            f"{describe(model)} has {names} next to its blocks; expected a final norm named one of "
            f"{', '.join(FINAL_NORMS)}."
        )
    return f"{parent}.{name}" if parent else name


def final_norm(model: TransformersModel) -> Any:
    """Return the envoy (or module) of the norm after the last block."""
    return _envoy(model, final_norm_path(model))


def width(model: TransformersModel) -> int:
    """Return the width of the residual stream, d_model.

    Raises:
        InjectionError: The configuration does not say.
    """
    found = getattr(text_config(model), "hidden_size", None)
    if found is None:
        raise InjectionError(
            f"{describe(model)} is not supported: its configuration has no hidden_size."
        )
    return int(found)


def depth(model: TransformersModel) -> int:
    """Return the number of blocks.

    Raises:
        InjectionError: No list of blocks is found.
    """
    return len(_blocks(model)[1])


def text_config(model: TransformersModel) -> Any:
    """Return the configuration of `model`'s language model."""
    config = getattr(module_of(model), "config", None)
    if not hasattr(config, "get_text_config"):
        raise InjectionError(
            f"Expected an nnsight TransformersModel, got {type(model).__name__}. Write: from "
            "nnsight import TransformersModel; TransformersModel(name, task='text-generation')."
        )
    return cast("Any", config).get_text_config()


def config(model: TransformersModel) -> Any:
    """Return the configuration of `model`, ``None`` if it has none."""
    return getattr(module_of(model), "config", None)


def describe(model: TransformersModel) -> str:
    """Return the name a person would know `model` by."""
    module = module_of(model)
    named = getattr(getattr(module, "config", None), "name_or_path", None)
    return str(getattr(model, "repo_id", None) or named or type(module).__name__)


def short_name(name: str) -> str:
    """Return a model's name; for a local folder, the folder's own name."""
    return Path(name).name if Path(name).is_dir() else name


def adapter_of(model: TransformersModel) -> str | None:
    """Return the folder or Hub id of the adapter on `model`, ``None`` if it has none."""
    adapter = getattr(model, "peft", None)
    return None if adapter is None else str(adapter)


def only_last(model: TransformersModel, count: int = 1) -> dict[str, int]:
    """Return the option for computing only the last tokens' logits, if `model` has one."""
    known = "logits_to_keep" in inspect.signature(module_of(model).forward).parameters
    return {"logits_to_keep": count} if known else {}


def keeps_state(model: TransformersModel) -> bool:
    """Return whether the model's forward takes a state that is no cache of transformers'."""
    return "state" in inspect.signature(module_of(model).forward).parameters


LEFT_PADDING_COUNTS = frozenset(
    (
        "bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "mvp",
        "pegasus", "plbart", "recurrent_gemma", "roformer", "rwkv", "trocr", "xlstm",
    )
)  # fmt: skip
"""The architectures whose models do not mask padding on the left: their positions or states
count pads. Measured: tutorials/reference/families.rst, "Padded"."""


def counts_left_padding(model: TransformersModel) -> bool:
    """Return whether a prompt that is padded on the left has other residuals than alone."""
    return getattr(text_config(model), "model_type", None) in LEFT_PADDING_COUNTS


def check_generates(model: TransformersModel) -> None:
    """Check that the model can continue a text in which a vector was written once.

    Raises:
        InjectionError: It cannot: it keeps nothing of earlier tokens.
    """
    module = module_of(model)
    module = getattr(module, "get_base_model", lambda: module)()
    if not _KEPT & set(inspect.signature(module.forward).parameters):
        raise InjectionError(
            f"{describe(model)} is not supported as a verbalizer: {type(module).__name__} has no "
            "cache, so a vector would be lost after the first token. It can be read."
        )


def dtype_of(model: TransformersModel) -> torch.dtype:
    """Return the dtype that `model` computes in."""
    return cast("Any", module_of(model)).dtype


def module_of(model: Any) -> nn.Module:
    """Return the PyTorch module of an nnsight model; a module is returned as it is."""
    return model if isinstance(model, nn.Module) else _compat.module_of(model)


def _envoy(model: Any, path: str) -> Any:
    found = model
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    return found


def _check_served(model: TransformersModel, layer: int | None) -> Finding:
    found = finding(module_of(model), layer)
    if found.refused is not None:
        raise InjectionError(f"{describe(model)} is not supported: {found.refused}")
    return found


def _blocks(model: TransformersModel) -> tuple[str, nn.ModuleList]:
    text_config(model)
    try:
        return find_blocks(module_of(model))
    except LookupError as error:
        raise InjectionError(f"{describe(model)} is not supported: {error.args[0]}.") from error
