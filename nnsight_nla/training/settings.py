"""How long, how fast and with what a warm start trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lora:
    """Train low-rank adapters of every linear layer of the blocks, not the weights themselves."""

    rank: int = 128
    """The adapters' rank."""
    alpha: int = 16
    """The adapters' scale, divided by the rank's square root (``rslora``) or the rank."""
    scaling: Literal["rslora", "lora"] = "rslora"
    """What `alpha` is divided by; rsLoRA as published, or plain LoRA."""


@dataclass(frozen=True)
class Settings:
    """One run of `transformers.Trainer`; the defaults are those of the published 8B verbalizer."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Rows a forward pass, on each device."""
    accumulation: int = 1
    """Forward passes an optimizer step."""
    learning_rate: float = 3e-5
    """The peak of the learning rate."""
    warmup: int = 50
    """Steps of linear warm-up to the peak."""
    final_rate: float = 0.05
    """The share of the peak that the cosine ends at."""
    weight_decay: float = 0.0
    """AdamW's decay of the weights, a step and unit of learning rate."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """What the forward pass computes in; ``bfloat16`` is autocast, the weights keep their dtype."""
    lora: Lora | None = None
    """Adapters; all weights are trained when ``None``."""
    activations: Literal["keep", "recompute"] = "keep"
    """``recompute`` them in the backward pass (gradient checkpointing): slower, far less memory."""
    seed: int = 0
    """Of the order of the rows and of the adapters' initial weights."""
