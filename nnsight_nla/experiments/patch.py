"""Activation patching: write values of the clean run into the corrupt run, cell by cell.

    sweep = patch(model, nla, "People in Paris speak", "People in Rome speak",
                  layers="all", positions="all", metric=logit_difference(" French", " Italian"))

Each cell writes one value of the clean run (at one site, layer and position) into the corrupt run.
Its effect is normalised: 0 is the metric of the corrupt run, 1 that of the clean run. It has three
explanations, of the residual at block K in the clean, the corrupt and the patched run.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, Unpack

from torch import Tensor

from ..errors import ExperimentError
from .grid import run_cells
from .plan import Options, Setup, takes_options
from .positions import align, pairs
from .records import Cell
from .sweep import Sweep

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

    from ..explanation.protocols import ExplainsAndReconstructs


@takes_options
def patch(
    model: TransformersModel | TransformerBridge,
    nla: ExplainsAndReconstructs,
    clean: Any,
    corrupt: Any,
    **options: Unpack[Options],
) -> Sweep:
    """Patch the clean run's values into the corrupt run, one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        clean: The prompt that values are taken from (a string, token ids or chat messages).
        corrupt: The prompt that they are written into.
        options: See `Options`.

    Raises:
        ExperimentError: An argument does not fit, or both runs have the same metric.
        InjectionError: The model has no such site, or is not the verbalizer's target.
    """
    setup = Setup.of(patch, model, nla, corrupt, options)
    source, into = setup.target.model.positions(clean), setup.prompt
    alignment = align(source.ids, into.ids)
    chosen = pairs(setup.positions, source.tokens, into.tokens, alignment)
    cells = [
        Cell(site.name, site.layer, site.head, position, from_)
        for site, (from_, position) in itertools.product(setup.sites.values(), chosen)
    ]
    at = {position: position for position in setup.explained_by(cells)}
    counterparts = {**alignment.source, **{position: from_ for from_, position in chosen}}
    aligned = {position: counterparts[position] for position in at if position in counterparts}
    donors = setup.untouched(source, aligned, collect=True)
    own = setup.untouched(into, at, collect=True)

    def donor(cell: Cell, _: int) -> Tensor:
        return donors.found.values[cell.layer, cell.head][cell.source]

    def already(cell: Cell) -> bool:
        return donor(cell, 0).equal(own.found.values[cell.layer, cell.head][cell.position])

    runs = {"clean": donors, "corrupt": own}
    plan = setup.plan(runs, cells, "write", donor, idle=filter(already, cells))
    _check_apart(plan.runs["clean"].metric, plan.runs["corrupt"].metric, plan.measure.name)
    return run_cells(plan)


def _check_apart(clean: float | None, corrupt: float | None, name: str) -> None:
    if clean is None or corrupt is None:
        raise ExperimentError(
            f"{name} is {clean} on the clean and {corrupt} on the corrupt prompt (None: not "
            "finite), so no effect can be measured against them."
        )
    # Two runs that differ by rounding alone would make every effect noise.
    if abs(clean - corrupt) <= 1e-6 * max(abs(clean), abs(corrupt), 1e-30):
        raise ExperimentError(
            f"{name} is {clean:.6g} on the clean and {corrupt:.6g} on the corrupt prompt: there is "
            "no difference that a patch could restore. Choose answers in which the prompts differ."
        )
