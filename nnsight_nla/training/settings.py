"""Hyperparameters of a warm start: schedule, batches, precision and adapters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Lora:
    """Train low-rank adapters on every linear layer of the blocks, instead of the weights."""

    rank: int = 128
    """The rank of the adapters."""
    alpha: int = 16
    """The scale of the adapters, divided by the rank's square root (``rslora``) or the rank."""
    scaling: Literal["rslora", "lora"] = "rslora"
    """rsLoRA as published, or plain LoRA: whether `alpha` is divided by the root of the rank."""


@dataclass(frozen=True)
class Settings:
    """One run of `transformers.Trainer`; the defaults are those of the published 8B verbalizer."""

    steps: int = 1000
    """Optimizer steps."""
    batch_size: int = 64
    """Rows per forward pass, on each device."""
    accumulation: int = 1
    """Forward passes per optimizer step."""
    learning_rate: float = 3e-5
    """The peak of the learning rate."""
    warmup: int = 50
    """Steps of linear warm-up to the peak."""
    final_rate: float = 0.05
    """The learning rate at the end of the cosine schedule, as a fraction of the peak."""
    weight_decay: float = 0.0
    """The weight decay of AdamW."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The precision of the forward pass; ``bfloat16`` is autocast, the weights keep their dtype."""
    lora: Lora | None = None
    """The adapters to train; ``None`` trains all weights."""
    activations: Literal["keep", "recompute"] = "keep"
    """``recompute`` them in the backward pass (gradient checkpointing): slower, less memory."""
    seed: int = 0
    """Seed of the order of the rows and of the adapters' initial weights."""
