"""Watch a training: measure, report, save, and stop when told to."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from ...core.baseline import Baseline
from ..best import Best
from ..files import Files, Report
from ..reporting import duration
from ..rows import TrainingError
from ..work_folder import is_main_process
from .held_out import HeldOutVectors, measure, names_of
from .loop import STEP_FIGURES, Figures, Loop
from .reward import Reward
from .settings import RLSettings, RLWatching
from .state import save_state
from .stops import Stop, parse_stops

_OFTEN, _SELDOM = 10.0, 0.1
"""Seconds between two lines of progress: so many at least, and this share of the time so far."""
_SAID = ("reward", "extraction", "length", "kl", "entropy", "distinct")


class Oversight:
    """Called after each step of a `Loop`."""

    def __init__(
        self,
        loop: Loop,
        rows: HeldOutVectors | None,
        baseline: Baseline | None,
        watching: RLWatching,
        stops: list[Stop],
        files: Files,
        report: Report | None,
    ) -> None:
        """Open the log of TensorBoard if there is one.

        Args:
            loop: The training.
            rows: Held-out rows; ``None`` measures nothing.
            baseline: The denominator of the FVE.
            watching: How often, and what to keep.
            stops: When to stop.
            files: Where states are saved.
            report: Called with lines of progress.

        Raises:
            TrainingError: TensorBoard is not installed.
        """
        self.loop, self.watching = loop, watching
        self.stopped: str | None = None
        """Why the training was stopped; ``None`` if it was not."""
        self.kept: Best | None = None
        """The step whose weights were kept as the best; ``None`` keeps the last."""
        self.baseline = baseline
        """The denominator of the FVE."""
        self._rows, self._stops = rows, stops
        self._files, self._report = files, report
        self._writer = _writer(files) if is_main_process() else None
        self._began, self._due, self._first = time.monotonic(), 0.0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Close the log of TensorBoard."""
        if self._writer is not None:
            self._writer.close()

    def start(self) -> None:
        """Measure the warm start, as step 0."""
        figures = self._measured(0)
        if figures:
            self.loop.log.append({"step": 0.0, **figures})
            self._write(0, figures)
        self._began = time.monotonic()

    def __call__(self, step: int, figures: Figures) -> bool:
        """Watch a step, counted from 1; return whether to stop."""
        self._first = self._first or step
        line = self.loop.log[-1]
        self.stopped = self._reason(line)
        last = step == self.loop.settings.steps or self.stopped is not None
        if step % self.watching.every == 0 or last:
            self.loop.pair.check_frozen(step)
            line |= self._measured(step)
            self.stopped = self.stopped or self._reason(line)
            if is_main_process():
                save_state(
                    self._files, step, self.loop.pair, self.loop.optimizers, self.loop.log,
                    best=self.watching.best,
                )  # fmt: skip
        self._write(step, line)
        self._say(step, figures, always=last)
        if self.stopped is not None and self._report is not None:
            self._report(f"stopped after step {step}: {self.stopped}")
        return self.stopped is not None

    def outcome(self) -> dict[str, Any]:
        """Return what the sidecar says about how the training ended."""
        found: dict[str, Any] = {} if self.stopped is None else {"stopped": self.stopped}
        if self.kept is not None:
            found |= {"kept_step": self.kept.step, "kept_by": self.watching.best}
        return found

    def _reason(self, line: Mapping[str, float]) -> str | None:
        return next((why for each in self._stops if (why := each.reason(line))), None)

    def _measured(self, step: int) -> Figures:
        """Measure on the first process; all get its figures."""
        if self._rows is None:
            return {}
        loop, figures = self.loop, None
        if is_main_process():
            figures = measure(
                loop.pair, self._rows, self.baseline, self.watching, loop.settings.max_new_tokens
            )
            if self._report is not None:
                said = ", ".join(f"{name} {value:z.4f}" for name, value in figures.items())
                self._report(f"step {step} of {loop.settings.steps}, held out: {said}")
        return {f"eval_{name}": value for name, value in loop.agreed(figures).items()}

    def _write(self, step: int, line: Mapping[str, float]) -> None:
        if self._writer is not None:
            for name, value in line.items():
                if name != "step":
                    kind, _, rest = name.partition("_")
                    where = f"held_out/{rest}" if kind == "eval" else f"draws/{name}"
                    self._writer.add_scalar(where, value, step)

    def _say(self, step: int, figures: Figures, *, always: bool) -> None:
        now = time.monotonic()
        if self._report is None or (now < self._due and not always):
            return
        self._due = now + max(_OFTEN, _SELDOM * (now - self._began))
        done, left = step - self._first + 1, self.loop.settings.steps - step
        pace = (now - self._began) / done
        said = ", ".join(f"{name} {figures[name]:z.4f}" for name in _SAID)
        rest = f", about {duration(left * pace)} left" if left else ""
        self._report(f"step {step} of {self.loop.settings.steps}, {said}, {pace:.3g} s/step{rest}")


def check_figures(
    watching: RLWatching,
    settings: RLSettings,
    own: Mapping[str, Reward],
    rows: HeldOutVectors | None,
    *,
    fve: bool,
) -> list[Stop]:
    """Read the conditions to stop at, and check that all figures that are named are measured.

    Args:
        watching: Names figures.
        settings: Says whether the reconstructor is trained.
        own: The caller's rewards, whose means are figures.
        rows: The held-out rows; ``None`` if nothing is measured.
        fve: Whether there is a baseline.

    Raises:
        TrainingError: A figure is not measured, or a reward has the name of another figure.
    """
    trained = settings.reconstructor == "train"
    of_steps = [*STEP_FIGURES, *(["ar_loss"] if trained else [])]
    taken = next((name for name in own if name in (*of_steps, "step")), None)
    if taken is not None:
        raise TrainingError(f"A reward is called {taken!r}, as a figure is. Rename it.")
    held = [] if rows is None else names_of(rows, watching.judges, fve=fve, trained=trained)
    if watching.best is not None and watching.best not in held:
        measured = (
            f"Expected one of {', '.join(held)}."
            if held
            else "Nothing is measured: hold out some documents (held_out=0.05) and measure some "
            "rows (RLWatching(rows=64))."
        )
        raise TrainingError(f"best={watching.best!r} is not measured in this training. {measured}")
    return parse_stops(watching.stop, [*of_steps, *own, *(f"eval_{name}" for name in held)])


def _writer(files: Files) -> Any:
    """Return TensorBoard's writer; ``None`` if no folder for it was named."""
    if files.tensorboard is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            "TensorBoard is not installed: pip install 'nnsight-nla[tensorboard]'. Or remove "
            f"tensorboard={str(files.tensorboard)!r}."
        ) from error
    return SummaryWriter(str(files.tensorboard), purge_step=files.steps() + 1)
