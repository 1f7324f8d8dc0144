"""Hyperparameters of the second stage, and what is watched while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...core.numeric import is_int, is_real
from ...errors import shown
from ..held_out import Metric
from ..rows import TrainingError
from ..settings import Lora


@dataclass(frozen=True)
class RLSettings:
    """One run of reinforcement learning; the defaults are the published ones."""

    steps: int = 400
    """Updates of the verbalizer; each has draws of its own."""
    prompts: int = 256
    """Vectors per step, of all processes together."""
    draws: int = 8
    """Texts per vector: a group, whose rewards are compared."""
    max_new_tokens: int = 256
    """The longest text, in tokens. A text that is cut off there counts as failed."""
    temperature: float = 1.0
    """The temperature of the draws, and of the log-probabilities that are trained."""
    av_rate: float = 1e-4
    """The peak of the verbalizer's learning rate."""
    ar_rate: float = 8e-5
    """The peak of the reconstructor's learning rate."""
    warmup: int = 0
    """Steps of linear warm-up to the peaks."""
    final_rate: float = 1.0
    """The learning rates at the end, as a fraction of the peaks: a half cosine; 1 is constant."""
    kl: float = 0.01
    """The weight of the KL divergence from the warm start, in reward per nat."""
    reconstruction: float = 1.0
    """The weight of the reconstruction in the reward: minus the direction MSE."""
    length_margin: int = 64
    """Tokens below `max_new_tokens` from which a text's length costs reward."""
    length_penalty: float = 0.01
    """What each of these tokens costs."""
    engine: Literal["fast", "vllm"] = "fast"
    """What draws the texts. ``vllm`` needs adapters, and gets them anew before each step."""
    reconstructor: Literal["train", "freeze"] = "train"
    """Whether the reconstructor takes a step on the policy's texts too."""
    batch_size: int = 32
    """Texts per forward pass, on each device."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """The precision of the training's forward pass; ``bfloat16`` is autocast."""
    lora: Lora | None = None
    """Fresh adapters for a verbalizer that is a whole model. A verbalizer that is an adapter
    continues its own; ``None`` trains all weights of a whole model."""
    activations: Literal["keep", "recompute"] = "keep"
    """``recompute`` them in the backward pass (gradient checkpointing): slower, less memory."""
    seed: int = 0
    """Seed of the draws and of the order of the vectors."""

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            TrainingError: One is out of its range; the message names it.
        """
        whole = {"steps": 1, "prompts": 1, "max_new_tokens": 1, "warmup": 0, "length_margin": 0,
                 "batch_size": 1}  # fmt: skip
        checks = [
            *((name, is_int(getattr(self, name), least), f"a whole number, {least} or more")
              for name, least in whole.items()),
            ("draws", is_int(self.draws, 2), "2 or more: the texts of one vector are compared with "
             "each other, and a group of one has nothing to compare"),
            ("temperature", is_real(self.temperature) and self.temperature > 0, "above 0"),
            *((name, is_real(value := getattr(self, name)) and value >= 0, "0 or more")
              for name in ("av_rate", "ar_rate", "kl", "reconstruction", "length_penalty",
                           "final_rate")),
            ("engine", self.engine in ("fast", "vllm"), "'fast' or 'vllm'"),
            ("reconstructor", self.reconstructor in ("train", "freeze"), "'train' or 'freeze'"),
            ("seed", is_int(self.seed), "a whole number"),
        ]  # fmt: skip
        for name, valid, expected in checks:
            if not valid:
                raise TrainingError(
                    f"RLSettings({name}={shown(getattr(self, name))}): expected {expected}."
                )


@dataclass(frozen=True)
class RLWatching:
    """What to measure, when to stop, and what to keep."""

    every: int = 20
    """Steps between two measurements on held-out rows, and two training checkpoints."""
    rows: int = 64
    """The number of held-out rows to measure; 0 for none."""
    stop: Sequence[str] = ()
    """When to stop early: ``"kl>0.5"``, ``"extraction<0.9"``, ``"eval_fve<0.6"``. The figures of a
    step have plain names, those on held-out rows begin with ``eval_``."""
    best: str | None = None
    """The figure on held-out rows by which the best of the measured steps is kept, such as
    ``"fve"`` or ``"grounded_next"``; ``None`` keeps the last step."""
    grounded: bool | None = None
    """Whether to compare texts with those that the vectors were read in; ``None`` does so if the
    file of rows has them."""
    judges: Mapping[str, Metric] = field(default_factory=dict[str, "Metric"])
    """More figures on held-out rows, by name: functions of texts, labels and vectors."""
    tensorboard: Path | None = None
    """The folder of TensorBoard's events."""
    keep: bool = False
    """Whether to keep the state of a finished training, so that more steps can continue it."""

    def __post_init__(self) -> None:
        """Check what does not depend on the rows.

        Raises:
            TrainingError: A number is out of its range.
        """
        for name, least in (("every", 1), ("rows", 0)):
            if not is_int(getattr(self, name), least):
                raise TrainingError(
                    f"RLWatching({name}={shown(getattr(self, name))}): expected a whole number, "
                    f"{least} or more."
                )

    def fixed(self) -> dict[str, Any]:
        """Return the options that a training cannot be resumed without."""
        return {} if self.best is None else {"best": self.best, "measured_rows": self.rows}
