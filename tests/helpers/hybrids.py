"""Random models with linear attention, state-space blocks or convolutions next to attention."""

from typing import Any

import torch
from torch import nn
from transformers import (
    FalconH1Config,
    FalconH1ForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

HYBRIDS = ("falcon_h1", "lfm2", "qwen3_5", "qwen3_next")


def configured(family: str, *, width: int, depth: int, head: int, **shape: Any) -> nn.Module:
    """A model of one of the families, as transformers initializes it.

    `depth` is a multiple of 4: the Qwen families attend in every fourth block.
    """
    heads = width // head
    common: dict[str, Any] = {
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        **shape,
    }
    linear: dict[str, Any] = {
        "head_dim": head,
        "linear_num_key_heads": heads // 2,
        "linear_num_value_heads": heads,
        "linear_key_head_dim": head,
        "linear_value_head_dim": head,
    }
    if family == "qwen3_next":
        few: dict[str, Any] = {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": width,
        }
        few["shared_expert_intermediate_size"] = width
        return Qwen3NextForCausalLM(Qwen3NextConfig(**common, **linear, **few))
    if family == "qwen3_5":
        return Qwen3_5ForCausalLM(Qwen3_5TextConfig(**common, **linear))
    if family == "falcon_h1":
        states: dict[str, Any] = {
            "mamba_d_ssm": 2 * width,
            "mamba_n_heads": 2 * heads,
            "mamba_d_head": head,
        }
        states |= {"mamba_d_state": head, "mamba_chunk_size": 32}
        return FalconH1ForCausalLM(FalconH1Config(**common, **states))
    if family == "lfm2":
        kinds = ["conv", "conv", "full_attention", "conv"] * (depth // 4)
        return Lfm2ForCausalLM(
            Lfm2Config(**common, layer_types=kinds, block_auto_adjust_ff_dim=False)
        )
    raise ValueError(f"{family!r}: expected one of {HYBRIDS}")


def randomized(module: nn.Module) -> nn.Module:
    """Draw matrices from U(-0.5, 0.5): as it is initialized, a model is deaf to its vectors."""
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.rand(weight.shape, generator=generator) - 0.5)
    return module.eval()
