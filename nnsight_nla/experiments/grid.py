"""Run the cells of a sweep: many in one forward pass, stoppable, resumable.

P × L cells cost ``ceil(P * L / batch_size)`` forwards of the target, whatever layers and positions
a batch mixes (and one more for each run without an intervention). The residuals that were read are
explained together, by one ``explain()``, each different vector once.

Ctrl-C ends a sweep with the cells that are done; any other failure carries them in
``error.partial``. Pass either as ``resume=`` to go on.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from ..errors import ExperimentError, NLAWarning
from ..progress import progress
from .forward import Edit
from .plan import Plan
from .records import Cell, Outcome
from .resume import partial_sweep
from .sweep import Sweep


def run_cells(plan: Plan) -> Sweep:
    """Run the cells of `plan` that are not done yet.

    Raises:
        ExperimentError: ``resume=`` is another sweep, or a forward pass failed.
    """
    setup, before = plan.setup, partial_sweep(plan)
    outcomes = {} if before is None else dict(before.outcomes)
    left = [cell for cell in plan.cells if cell not in outcomes]

    def sweep() -> Sweep:
        known = None if before is None else before.texts
        identity = {"metric": plan.measure.identity}
        return Sweep(plan.header, plan.cells, plan.runs, outcomes, setup.nla, known, identity)

    try:
        with progress("sweep", total=len(left), unit="cell") as bar:
            for start in range(0, len(left), setup.batch_size):
                batch = left[start : start + setup.batch_size]
                outcomes.update(_run(plan, batch))
                bar.advance(len(batch))
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


def _run(plan: Plan, cells: Sequence[Cell]) -> dict[Cell, Outcome]:
    """Run one forward pass."""
    setup, target = plan.setup, plan.setup.target
    base = plan.runs[plan.header.baseline].residuals
    edits: list[Edit] = []
    read: list[tuple[int, int]] = []
    residuals: list[dict[int, Tensor]] = [{} for _ in cells]
    for row, cell in enumerate(cells):
        site = setup.sites[cell.layer, cell.head]
        written = setup.prompt.positions if cell.position is None else [cell.position]
        edits += [Edit(row, at, site, plan.vector(cell, at)) for at in written]
        reached = setup.explained.reached(cell, target.k)
        if cell in plan.idle:
            residuals[row] = {at: base[at] for at in reached}
        else:
            read += [(row, at) for at in reached]
    ids = [setup.prompt.ids] * len(cells)
    found = target.run(ids, plan.measure, edits=edits, action=plan.action, read=read)
    if found.residuals is not None:
        for (row, at), vector in zip(read, found.residuals, strict=True):
            residuals[row][at] = vector
    decode = target.model.tokenizer.decode
    numbers = plan.measure(found.answers)
    return {
        cell: Outcome(numbers[row], decode([found.top[row]]), residuals[row])
        for row, cell in enumerate(cells)
    }
