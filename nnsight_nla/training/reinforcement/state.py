"""The state of a running training: weights, optimizers, figures.

A checkpoint is a folder that gets its name when it is complete, so a training that is killed at any
moment resumes from a whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...storage.atomic import atomic_folder
from ..best import CHECKPOINT, WEIGHTS, best_of, saved_steps
from ..files import STATE, Files, Log
from ..rows import TrainingError
from .pair import Pair

_AR, _OPTIMIZERS = "reconstructor.safetensors", "optimizers.pt"


def save_state(
    files: Files,
    step: int,
    pair: Pair,
    optimizers: Mapping[str, torch.optim.Optimizer],
    log: Log,
    *,
    best: str | None,
) -> None:
    """Save a checkpoint, and remove older ones but the best.

    Args:
        files: The work folder.
        step: The number of steps that are done.
        pair: The models.
        optimizers: Their optimizers, by name.
        log: The figures so far.
        best: The figure by which the best step is kept; with ``None``, that before the last stays.

    Raises:
        TrainingError: The disk is full; the last checkpoint is kept.
    """
    folder = files.folder / f"{CHECKPOINT}{step}"
    advice = "Then rerun with the original options to resume."
    with atomic_folder(folder, advice=advice, error=TrainingError) as part:
        save_file(_stored(pair.av_weights), part / WEIGHTS)
        if pair.reconstructor is not None:
            save_file(_stored(pair.ar_weights), part / _AR)
        states = {name: each.state_dict() for name, each in optimizers.items()}
        torch.save(states, part / _OPTIMIZERS)
        (part / STATE).write_text(json.dumps({"step": step, "log": log}), encoding="utf-8")
    steps = saved_steps(files.folder)
    found = None if best is None else best_of(log, best, steps)
    kept = {step, max(steps - {step}, default=step) if found is None else found.step}
    for old in steps - kept:
        shutil.rmtree(files.folder / f"{CHECKPOINT}{old}", ignore_errors=True)


def load_state(
    checkpoint: Path, pair: Pair, optimizers: Mapping[str, torch.optim.Optimizer]
) -> Log:
    """Load a checkpoint into models and optimizers, and return the figures up to it."""
    load_weights(checkpoint, pair)
    states: dict[str, Any] = torch.load(checkpoint / _OPTIMIZERS, weights_only=True)
    for name, each in optimizers.items():
        each.load_state_dict(states[name])
    return json.loads((checkpoint / STATE).read_text("utf-8"))["log"]


def load_weights(checkpoint: Path, pair: Pair) -> None:
    """Load the weights of a checkpoint."""
    files = {WEIGHTS: pair.av_weights}
    if pair.reconstructor is not None:
        files[_AR] = pair.ar_weights
    for name, weights in files.items():
        stored = load_file(checkpoint / name)
        with torch.no_grad():
            for key, weight in weights.items():
                weight.copy_(stored[key])
    pair.sync_head()


def remove_parts(files: Files) -> None:
    """Remove what a killed process left of writing a checkpoint."""
    for part in files.folder.glob(f".{CHECKPOINT}*"):
        shutil.rmtree(part, ignore_errors=True)


def _stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: each.detach().cpu().contiguous() for name, each in weights.items()}
