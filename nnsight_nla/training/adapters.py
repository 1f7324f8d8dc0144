"""Put low-rank adapters on a language model's blocks, and save them, through PEFT."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models import hosts
from ..models.blocks import find_blocks
from .rows import TrainingError
from .settings import Lora


def with_adapters(model: Any, lora: Lora, seed: int) -> Any:
    """Add adapters to every linear layer inside `model`'s blocks and freeze everything else.

    An image tower next to the blocks gets none: text does not run through it.

    Args:
        model: A causal language model; changed in place.
        lora: Rank and scale.
        seed: Seed of the adapters' initial weights.

    Raises:
        TrainingError: PEFT is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise TrainingError(
            "Settings(lora=...) needs PEFT: pip install 'nnsight-nla[adapters]'."
        ) from error
    from transformers.pytorch_utils import Conv1D

    hosts.text_config(model)
    path, blocks = find_blocks(model)
    kinds = (nn.Linear, Conv1D)
    # By number, so that an adapter trained on a truncated model fits the complete one on a host.
    numbers = "|".join(map(str, range(len(blocks))))
    names = {name.rpartition(".")[2] for name, each in blocks.named_modules() if _is(each, kinds)}
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        use_rslora=lora.scaling == "rslora",
        target_modules=rf"{re.escape(path)}\.({numbers})\..*\.?({'|'.join(sorted(names))})",
        # GPT-2 keeps its linear layers transposed.
        fan_in_fan_out=any(_is(each, (Conv1D,)) for each in blocks.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def adapter_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights of the adapters inside `model`, by name; empty if it has none."""
    tuned: list[Any] = [each for each in model.modules() if hasattr(each, "get_base_layer")]
    base = {id(weight) for each in tuned for weight in each.get_base_layer().parameters()}
    own = {id(weight) for each in tuned for weight in each.parameters()} - base
    return {name: each for name, each in model.named_parameters() if id(each) in own}


def save_adapter(model: Any, folder: Path) -> None:
    """Save adapters that were put into the modules of `model` as PEFT saves its own."""
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    (config,) = model.peft_config.values()
    weights = get_peft_model_state_dict(model)
    named = {
        f"base_model.model.{name}": each.detach().cpu().contiguous()
        for name, each in weights.items()
    }
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    before, config.inference_mode = config.inference_mode, True
    try:
        config.save_pretrained(folder)
    finally:
        config.inference_mode = before


def _is(module: nn.Module, kinds: tuple[type, ...]) -> bool:
    return isinstance(module, kinds)
