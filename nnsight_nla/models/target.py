"""Read residuals from a target: an nnsight model or a TransformerLens bridge.

`hosts` and `bridge` have the same functions for the two kinds of model; this module chooses::

    envoy = residual(model, checkpoint)        # the output of block K, after checking the width
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .. import _compat
from ..checkpoint import identity
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.origin import Origin
from ..errors import InjectionError, NLAWarning
from . import bridge, hosts, weights
from .prompts import FLAT

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    Target = TransformersModel | TransformerBridge
    """A model whose residuals are read."""


def kind(model: Target) -> ModuleType:
    """Return the module for this kind of model: `bridge` or `hosts`."""
    return bridge if bridge.is_bridge(model) else hosts


def describe(model: Target) -> str:
    """Return the name a person would know `model` by."""
    return kind(model).describe(model)


def positions(
    model: Target,
    prompts: str | Sequence[Any],
    *,
    padding_side: hosts.Side | None = None,
    prepend_bos: bool | None = None,
) -> list[hosts.Positions]:
    """Return the real positions of each prompt in a padded batch; see `hosts.positions`."""
    options = {"padding_side": padding_side, "prepend_bos": prepend_bos}
    return kind(model).positions(model, prompts, **options)


def tokenized(model: Target, prompt: Any, *, advice: str = FLAT) -> hosts.Positions:
    """Return the tokens of one prompt as its tokenizer makes them, the same for both kinds.

    Args:
        model: The target.
        prompt: A string, token ids, or chat messages.
        advice: What to type for several prompts.

    Raises:
        InjectionError: It is not one prompt, or the tokenizer refuses it.
    """
    return kind(model).tokenized(model, prompt, advice=advice)


def check_length(model: Target, tokens: int, *, stacklevel: int = 2) -> int | None:
    """Check a text against the context of `model`.

    Args:
        model: The target.
        tokens: The length of the text.
        stacklevel: For the warning, as seen from the caller.

    Returns:
        The context, if the text goes past it.

    Raises:
        InjectionError: The model cannot run so long a text.

    Warns:
        NLAWarning: The text is longer than the model was built for.
    """
    longest, ends = kind(model).context(model)
    if longest is None or tokens <= longest:
        return None
    said = f"The text has {tokens:,} tokens, and {describe(model)} was built for {longest:,}"
    if ends:
        raise InjectionError(f"{said}; it has no positions for more. Shorten the text.")
    warnings.warn(
        f"{said}. The residuals of tokens after that are nothing that it was trained for; their "
        "explanations say so. Shorten the text to leave them out.",
        NLAWarning,
        stacklevel=stacklevel + 1,
    )
    return longest


def check_padding(model: Target, *, stacklevel: int = 2) -> None:
    """Warn in a trace of prompts that are padded on the left, if `model` does not mask it.

    Args:
        model: The target.
        stacklevel: For the warning, as seen from the caller.
    """
    if bridge.is_bridge(model) or not hosts.counts_left_padding(model):
        return
    mask = _compat.running_mask()
    if mask is None or bool(mask[:, 0].all()):
        return
    warnings.warn(
        f"{describe(model)} does not mask padding on the left, so the shorter prompts of this "
        "trace have other residuals than they have alone. Trace prompts one by one, or set "
        "model.tokenizer.padding_side = 'right'.",
        NLAWarning,
        stacklevel=stacklevel + 1,
    )


def residual(model: Target, checkpoint: Checkpoint, layer: int | None = None) -> Any:
    """Return the envoy (or hook point) of the residual that a verbalizer was trained on.

    Args:
        model: The target.
        checkpoint: The verbalizer's.
        layer: Another block than the checkpoint's.

    Raises:
        InjectionError: `model` is not a known kind of target, has another width, lacks the block,
            or is a bridge whose weights were folded or centred.
        CheckpointError: `model` was loaded from a checkpoint that lacks some of its weights.
    """
    width = kind(model).width(model)
    if width != checkpoint.d_model:
        raise InjectionError(
            f"{describe(model)} has d_model {width}, the verbalizer reads {checkpoint.d_model}. "
            f"It was trained on {checkpoint.base_model or 'another model'}."
        )
    weights.check(model)
    return kind(model).block(model, checkpoint.layer if layer is None else layer)


def is_foreign(model: Target, checkpoint: Checkpoint) -> bool:
    """Return whether `model` is another one than the verbalizer's base model."""
    expected = Origin(model=checkpoint.base_model, config=checkpoint.base_config)
    return bool(origin(model, checkpoint.layer).differences(expected))


def origin(model: Target, layer: int) -> Origin:
    """Return the origin of the residuals of `model` at the output of a block."""
    config = kind(model).config(model)
    width = kind(model).width(model)
    fingerprint = None if config is None else identity.fingerprint(config)
    return Origin(describe(model), layer, width, "none", "residual", fingerprint)
