"""The folder in which a training keeps its state, one checkpoint for each of some steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .best import CHECKPOINT

Report = Callable[[str], None]
"""Called with a line of progress: losses, figures, the rate and the time that is left."""
Log = list[dict[str, float]]
"""Measurements in order: ``step``, and ``loss`` or figures named ``eval_...``.

The figures of a step that was kept as the best one include ``kept``, which is 1.
"""
STATE = "trainer_state.json"
"""The file of a checkpoint that is written last."""


@dataclass(frozen=True)
class Files:
    """Where a training writes while it runs."""

    folder: Path
    """The folder of the training's checkpoints; training resumes from the last complete one."""
    every: int
    """Steps between two checkpoints; the two newest are kept, or the newest and the best."""
    tensorboard: Path | None = None
    """The folder of TensorBoard's events."""

    def last(self, steps: int | None = None) -> Path | None:
        """Return the newest complete checkpoint; of `steps` or fewer, if there is one."""
        found = sorted(self.folder.glob(f"{CHECKPOINT}*"), key=lambda each: -step_of(each))
        complete = [each for each in found if _complete(each)]
        within = [each for each in complete if steps is None or step_of(each) <= steps]
        return next(iter(within or complete), None)

    def steps(self, asked: int | None = None) -> int:
        """Return how many steps the checkpoint `last` has done."""
        last = self.last(asked)
        return 0 if last is None else step_of(last)


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint's folder; -1 if its name has none."""
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _complete(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end: its state is written last."""
    try:
        json.loads((checkpoint / STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True
