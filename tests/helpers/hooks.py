"""The forward hooks that stay on a model."""

from typing import Any

from torch import nn


def left_hooks(model: nn.Module) -> list[Any]:
    """Return the model's forward hooks, but for those of transformers.

    It installs its own for ever once a model has returned its hidden states, as tests that share a
    model may ask for.
    """
    hooks = (hook for module in model.modules() for hook in module._forward_hooks.values())
    return [each for each in hooks if each.__module__ != "transformers.utils.output_capturing"]
