"""Working off the cells of a sweep: many in one forward pass, stoppable, resumable.

P × L cells cost ``ceil(P * L / batch_size)`` forwards of the target, whatever layers and positions
a batch mixes (and one more for each run without an intervention). The residuals that were read are
explained together, by one ``explain()``, each different vector once.

Ctrl-C ends a sweep with what is done; any other failure carries it in ``error.partial``. Both go on
with ``resume=``.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..errors import NLAWarning
from .errors import ExperimentError
from .forward import Edit, Found, Target
from .metrics import Measure
from .reachability import Cell, Explained
from .records import Header, Outcome
from .sites import Site
from .sweep import Sweep

if TYPE_CHECKING:
    from jaxtyping import Float

BATCH = 64
"""Cells in one forward pass, unless the caller says otherwise."""


@dataclass(frozen=True)
class Plan:
    """All that a sweep is going to do."""

    target: Target
    """The model, and where it runs."""
    header: Header
    """What the table says about itself."""
    ids: tuple[int, ...]
    """The prompt that is intervened on."""
    measure: Measure
    """What is measured."""
    explained: Explained
    """Where the residual is explained."""
    runs: Mapping[str, Outcome]
    """The runs without an intervention, by name."""
    cells: Sequence[Cell]
    """What is done where."""
    sites: Mapping[Cell, Site]
    """Each cell's module."""
    action: str
    """``"write"``, ``"add"`` or ``"project"``."""
    vector: Callable[[Cell, int], Float[Tensor, " width"]]
    """What is written for a cell at a position."""
    idle: frozenset[Cell] = field(default_factory=frozenset[Cell])
    """Cells that write what is there already: their residuals are the untouched run's."""


def work(plan: Plan, nla: Any, *, batch_size: Any, resume: Any) -> Sweep:
    """Run the cells of `plan` that are not done yet.

    Args:
        plan: The sweep.
        nla: Explains the residuals.
        batch_size: Cells in one forward pass.
        resume: A partial `Sweep` of the same plan, or where one was stored.

    Raises:
        ExperimentError: `resume` is of another sweep, or a forward pass failed.
    """
    size = _batch_size(batch_size)
    before = _partial(resume, plan.header, nla)
    outcomes = {} if before is None else dict(before.outcomes)
    left = [cell for cell in plan.cells if cell not in outcomes]

    def sweep() -> Sweep:
        known = None if before is None else before.texts
        return Sweep(plan.header, plan.cells, plan.runs, outcomes, nla, known)

    done = 0
    try:
        with _progress(len(left)) as bar:
            for start in range(0, len(left), size):
                batch = left[start : start + size]
                outcomes.update(_run(plan, batch))
                done += len(batch)
                bar.update(len(batch))
    except KeyboardInterrupt:
        warnings.warn(
            f"Stopped after {len(outcomes)} of {len(plan.cells)} cells. They are in the sweep that "
            "was returned; go on with the same call and resume=sweep.",
            NLAWarning,
            stacklevel=3,
        )
    except Exception as error:
        if not outcomes:
            raise
        stopped = ExperimentError(
            f"The sweep stopped after {len(outcomes)} of {len(plan.cells)} cells with "
            f"{type(error).__name__}: {error}. They are in error.partial; go on with the same call "
            "and resume=error.partial."
        )
        stopped.partial = sweep()
        raise stopped from error
    return sweep()


def untouched(
    target: Target,
    ids: Sequence[int],
    measure: Measure,
    at: Mapping[int, int],
    collect: Mapping[Any, Site] | None = None,
) -> Found:
    """A run without an intervention; its residuals are those of ``at.values()``, in order.

    Args:
        target: The model.
        ids: The prompt.
        measure: What is measured.
        at: The position of the prompt that is intervened on, to the position in this prompt.
        collect: Sites whose values are kept.
    """
    return target.run([ids], measure, collect=collect, read=[(0, place) for place in at.values()])


def outcome(found: Found, measure: Measure, target: Target, at: Mapping[int, int]) -> Outcome:
    """What an untouched run gave, in the table's terms."""
    residuals = {} if found.residuals is None else dict(zip(at, found.residuals, strict=True))
    token = target.host.tokenizer.decode([found.top[0]])
    return Outcome(measure(found.answers)[0], token, residuals)


def _run(plan: Plan, cells: Sequence[Cell]) -> dict[Cell, Outcome]:
    """One forward pass."""
    length, untouched_run = len(plan.ids), plan.runs[plan.header.baseline]
    edits: list[Edit] = []
    read: list[tuple[int, int]] = []
    owners: list[tuple[int, int]] = []
    for row, cell in enumerate(cells):
        places = range(length) if cell.position is None else [cell.position]
        edits += [Edit(row, at, plan.sites[cell], plan.vector(cell, at)) for at in places]
        if cell not in plan.idle:
            read += [(row, at) for at in plan.explained.reached(cell, plan.target.k)]
    found = plan.target.run(
        [plan.ids] * len(cells), plan.measure, edits=edits, action=plan.action, read=read
    )
    owners = read
    residuals: list[dict[int, Tensor]] = [{} for _ in cells]
    if found.residuals is not None:
        for (row, at), vector in zip(owners, found.residuals, strict=True):
            residuals[row][at] = vector
    for row, cell in enumerate(cells):
        if cell in plan.idle:
            reached = plan.explained.reached(cell, plan.target.k)
            residuals[row] = {at: untouched_run.residuals[at] for at in reached}
    decode = plan.target.host.tokenizer.decode
    numbers = plan.measure(found.answers)
    return {
        cell: Outcome(numbers[row], decode([found.top[row]]), residuals[row])
        for row, cell in enumerate(cells)
    }


def _partial(resume: Any, header: Header, nla: Any) -> Sweep | None:
    """The sweep to go on with, checked to be of the same plan."""
    if resume is None:
        return None
    sweep = Sweep.from_parquet(resume, nla=nla) if isinstance(resume, str | Path) else resume
    if not isinstance(sweep, Sweep):
        raise ExperimentError(
            f"resume={type(resume).__name__}: expected a Sweep, or the path of a stored one."
        )
    other = header.differs_from(sweep.header)
    if other:
        shown = "; ".join(f"{name} was {a!r} and is {b!r}" for name, a, b in other)
        raise ExperimentError(
            f"resume= is another sweep: {shown}. Resume with the call it was made by."
        )
    return sweep


def _batch_size(given: Any) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ExperimentError(f"batch_size={given!r}: expected a whole number from 1.")
    return given


def _progress(total: int) -> Any:
    """A bar on standard error, once a second has passed; silent where nobody watches."""
    from tqdm.std import tqdm

    unseen = not (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return tqdm(total=total, desc="sweep", unit="cell", delay=1, leave=False, disable=unseen)
