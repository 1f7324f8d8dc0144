"""Draw rollouts with vLLM, which gets the policy's adapter before each step.

vLLM loads the base itself; the policy is trained on a copy of it in this process. What is trained
is an adapter, a few megabytes, which is saved to a folder and loaded by vLLM as its own LoRA. In
float32 the draws are those of the default engine.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from ...errors import shown
from ...models.adapter import is_adapter
from ...verbalize.vllm.engine import VllmEngine
from ...verbalize.vllm.launch import lora_options
from ..rows import TrainingError
from ..saving import save_weights
from .settings import RLSettings


def check_engine(
    settings: RLSettings, vllm: Mapping[str, Any] | None, av: str | Path, processes: int
) -> None:
    """Raise if this engine cannot draw the rollouts of this training.

    Args:
        settings: Has the engine and the adapters.
        vllm: The keyword arguments of vLLM's ``LLM``.
        av: The warm start's verbalizer.
        processes: How many processes train.

    Raises:
        TrainingError: It cannot, or there are options of another engine.
    """
    if settings.engine != "vllm":
        if vllm is not None:
            raise TrainingError(
                f"vllm={shown(dict(vllm))} is for RLSettings(engine='vllm'), not for "
                f"engine={settings.engine!r}. Pass that engine too, or leave it out."
            )
        return
    if settings.lora is None and not is_adapter(av):
        raise TrainingError(
            f"RLSettings(engine='vllm') hands vLLM an adapter before each step, and {av} is a "
            "whole model. Train adapters on it: RLSettings(lora=Lora(16)), or --lora 16."
        )
    if processes > 1:
        raise TrainingError(
            f"RLSettings(engine='vllm') with {processes} processes: each would start a vLLM of its "
            "own. Use one process, and vllm={'tensor_parallel_size': n} for more GPUs."
        )


def nla_options(settings: RLSettings, vllm: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of `NLA` that choose the engine."""
    if settings.engine != "vllm":
        return {}
    fresh = {} if settings.lora is None else lora_options(settings.lora.rank)
    return {"engine": "vllm", "vllm": {**fresh, **(vllm or {})}}


class Handover:
    """Gives vLLM the policy's current adapter."""

    def __init__(self, engine: VllmEngine, policy: nn.Module) -> None:
        """Give it nothing yet.

        Args:
            engine: Draws the rollouts.
            policy: The module that is trained.
        """
        self._engine, self._policy = engine, policy
        self._home = TemporaryDirectory(prefix="nnsight-nla-rl-")
        self._folder: Path | None = None
        self._count = 0

    def __call__(self) -> None:
        """Give it the adapter as it is now."""
        before, self._count = self._folder, self._count + 1
        self._folder = Path(self._home.name) / str(self._count)
        self._folder.mkdir()
        save_weights(self._policy, self._folder)
        self._engine.use_adapter(self._folder)
        if before is not None:
            shutil.rmtree(before)

    def close(self) -> None:
        """Stop vLLM, and remove the adapter's files."""
        self._engine.unload()
        self._home.cleanup()
