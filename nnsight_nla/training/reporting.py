"""Say how far a training is: losses and figures, how fast it goes, and the time that is left."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from .files import Report

_OFTEN, _SELDOM = 10.0, 0.1
"""Seconds between two lines of progress: so many at least, and this share of the time so far."""


class Reporting(TrainerCallback):
    """Reports losses, and how fast the training is: after the first pass, then ever less often."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self._passes = self._done = 0
        self._began = self._first = self._due = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Start the clock."""
        self._began = time.monotonic()

    def on_substep_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Count a forward pass."""
        self._passes += 1
        self._pass_ended(args, state, silent=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count the last forward pass of a step."""
        self._passes = 0
        # The line with the loss, which follows, has the pace too.
        self._pass_ended(args, state, silent=control.should_log)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        """Report losses or figures."""
        figures = figures_of(logs or {})
        if figures:
            held = "" if "loss" in figures else " held out:"
            said = [f"{name.removeprefix('eval_')} {x:z.4f}" for name, x in figures.items()]
            pace = [] if held else [self._pace(args, state)]
            self._say(state, f",{held} {', '.join([*said, *filter(None, pace)])}")

    def _pass_ended(self, args: Any, state: Any, *, silent: bool) -> None:
        now = time.monotonic()
        self._done += 1
        if self._done == 1:
            self._first = now
        if not silent and now >= self._due:
            of = f" (pass {self._passes} of {args.gradient_accumulation_steps} of the next)"
            self._say(state, f"{of if self._passes else ''}, {self._pace(args, state)}")

    def _pace(self, args: Any, state: Any) -> str:
        """Return the rate and the time that is left."""
        now = time.monotonic()
        # The first pass is slower than the others.
        several = self._done > 1
        seconds = (now - self._first) / (self._done - 1) if several else now - self._began
        if not self._done or seconds <= 0:
            return ""
        rows = args.train_batch_size * args.world_size / seconds
        left = (state.max_steps - state.global_step) * args.gradient_accumulation_steps
        left -= self._passes
        rest = f", about {duration(left * seconds)} left" if left > 0 else ""
        return f"{rows:.3g} rows/s{rest}"

    def _say(self, state: Any, text: str) -> None:
        now = time.monotonic()
        self._due = now + max(_OFTEN, _SELDOM * (now - self._began))
        self.report(f"step {state.global_step} of {state.max_steps}{text}")


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(8.2), duration(100), duration(4000), duration(40_000)
    ('8 s', '2 min', '67 min', '11.1 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def figures_of(line: dict[str, Any]) -> dict[str, float]:
    """Return the losses and figures from a line of the trainer's log."""
    return {k: float(v) for k, v in line.items() if k == "loss" or k.startswith("eval_")}
