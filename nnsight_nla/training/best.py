"""Keep the step that was best on held-out rows, instead of the last one.

transformers' trainer remembers the best figure in its state and never deletes that checkpoint. What
it remembers is looked up again whenever a training is resumed or ends (`best_of`), among the
checkpoints that are there, so that it stays true after the folder was moved, or after a training
went back to an earlier state::

    best_of(state.log_history, "fve", saved_steps(folder))

A figure is better when it is larger, unless its name ends in ``loss``. What is not a finite number
is never the best; of equal figures, the earliest is.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerState

CHECKPOINT, WEIGHTS = "checkpoint-", "model.safetensors"
"""The name of a training's checkpoint, before its step, and the file of its weights."""


@dataclass(frozen=True)
class Best:
    """The best of the steps that were measured."""

    step: int
    """The step."""
    value: float
    """Its figure."""


def larger_is_better(figure: str) -> bool:
    """Return whether a larger value of a figure is better.

    >>> larger_is_better("fve"), larger_is_better("loss"), larger_is_better("judge_loss")
    (True, False, False)
    """
    return not figure.endswith("loss")


def best_of(
    history: Iterable[Mapping[str, Any]], figure: str, steps: Collection[int]
) -> Best | None:
    """Return the best of some steps; ``None`` if the figure is a number at none of them.

    Args:
        history: The trainer's log: ``step`` and figures named ``eval_...``.
        figure: The name of the figure.
        steps: The steps that can be kept.

    >>> log = [{"step": 2, "eval_fve": 0.5}, {"step": 4, "eval_fve": 0.7}, {"step": 6}]
    >>> best_of(log, "fve", {2, 4, 6}), best_of(log, "loss", {2, 4, 6})
    (Best(step=4, value=0.7), None)
    """
    name, sign = f"eval_{figure}", 1 if larger_is_better(figure) else -1
    found = [
        Best(int(line["step"]), float(line[name]))
        for line in history
        if line["step"] in steps and math.isfinite(line.get(name, math.nan))
    ]
    return max(found, key=lambda each: sign * each.value, default=None)


def saved_steps(folder: Path) -> set[int]:
    """Return the steps whose weights are in a training's folder."""
    found = (each.parent.name for each in folder.glob(f"{CHECKPOINT}*/{WEIGHTS}"))
    numbers = (name.removeprefix(CHECKPOINT) for name in found)
    return {int(number) for number in numbers if number.isdigit()}


class RememberBest(TrainerCallback):
    """Corrects what the state of a resumed training says about its best checkpoint.

    Its path may be another now. And a training with fewer steps than before may go on from a state
    whose best checkpoint was deleted since: then the best of those that are left takes its place.
    """

    def __init__(self, figure: str, folder: Path) -> None:
        """Look for the best checkpoint by a figure in a folder."""
        self.figure, self.folder = figure, folder

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Look it up."""
        found = best_of(state.log_history, self.figure, saved_steps(self.folder))
        state.best_metric = None if found is None else found.value
        state.best_global_step = None if found is None else found.step
        state.best_model_checkpoint = (
            None if found is None else str(self.folder / f"{CHECKPOINT}{found.step}")
        )
