"""Read residuals from a target: an nnsight model or a TransformerLens bridge.

`hosts` and `bridge` have the same functions for the two kinds of model; this module chooses::

    envoy = residual(model, checkpoint)        # the output of block K, after checking the width
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..checkpoint import identity
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.origin import Origin
from ..errors import InjectionError
from . import bridge, hosts, weights

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


def positions(model: Target, prompts: str | Sequence[Any]) -> list[hosts.Positions]:
    """Return the real positions of each prompt in a padded batch; see `hosts.positions`."""
    return kind(model).positions(model, prompts)


def residual(model: Target, checkpoint: Checkpoint) -> Any:
    """Return the envoy (or hook point) of the residual that a verbalizer was trained on.

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
    return kind(model).block(model, checkpoint.layer)


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
