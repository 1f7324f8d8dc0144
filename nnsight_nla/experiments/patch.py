"""Activation patching: values of the clean run in the corrupt one, and what the state becomes.

    sweep = patch(model, nla, "People in Paris speak", "People in Rome speak",
                  layers="all", positions="all", metric=logit_difference(" French", " Italian"))

Each cell writes one value of the clean run (at one site, layer and position) into the corrupt run.
Its effect is normalised: 0, the corrupt run's metric; 1, the clean run's. Its explanations
are those of the clean, the corrupt and the patched run's residual at block K.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .alignment import Positions, align, pairs
from .errors import ExperimentError
from .forward import Target
from .grid import BATCH, Plan, outcome, untouched, work
from .metrics import Metric, bind
from .reachability import Cell, ExplainAt, explained
from .records import Header
from .sites import SiteName, find
from .sweep import Sweep

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge


def patch(
    model: TransformersModel | TransformerBridge,
    nla: Any,
    clean: Any,
    corrupt: Any,
    *,
    layers: Any,
    positions: Positions,
    metric: Metric,
    explain_at: ExplainAt = -1,
    site: SiteName = "residual",
    heads: Any = None,
    batch_size: int = BATCH,
    resume: Any = None,
    remote: bool = False,
) -> Sweep:
    """Patch the clean run's values into the corrupt run, one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        clean: The prompt that values are taken from (a string, token ids or chat messages).
        corrupt: The prompt that they are written into.
        layers: A block, a list of them (counted from 0), or ``"all"``.
        positions: Of the corrupt prompt: one, a list, or ``"all"``. Where the prompts are unequal,
            ``"aligned"`` or pairs ``(clean, corrupt)``; see `alignment`.
        metric: See `metrics`.
        explain_at: Where the residual at block K is explained: a position of the corrupt prompt,
            ``"patched"`` (the cell's own), or a list of these.
        site: ``"residual"``, ``"attention"``, ``"mlp"`` or ``"head"``; see `sites`.
        heads: For ``site="head"``: which; all unless given.
        batch_size: Cells in one forward pass.
        resume: A partial `Sweep` of this same call, or where one was stored.
        remote: Run the target on the configured NDIF host.

    Raises:
        ExperimentError: Something that was asked for does not fit, or both runs have one metric.
        InjectionError: The model shows no such site, or is not the verbalizer's.
    """
    target = Target.of(model, nla, remote=remote)
    measure = bind(metric, target.host.tokenizer)
    source, into = target.tokens(clean), target.tokens(corrupt)
    alignment = align(source.ids, into.ids)
    places = pairs(positions, source.tokens, into.tokens, alignment)
    where = explained(explain_at, len(into.ids))
    sites = {(each.layer, each.head): each for each in find(model, site, layers, heads)}
    cells = [
        Cell(site, layer, head, position, from_)
        for (layer, head), (from_, position) in itertools.product(sites, places)
    ]
    at = {place: place for cell in cells for place in where.of(cell)}
    chosen = {position: from_ for from_, position in places}
    counterparts = {**alignment.source, **chosen}
    beside = {place: counterparts[place] for place in at if place in counterparts}
    donors = untouched(target, source.ids, measure, beside, sites)
    own = untouched(target, into.ids, measure, at, sites)
    if measure.columns is None:
        measure = replace(measure, runs={"clean": donors.answers[0], "corrupt": own.answers[0]})
    runs = {
        "clean": outcome(donors, measure, target, beside),
        "corrupt": outcome(own, measure, target, at),
    }
    _check_apart(runs["clean"].metric, runs["corrupt"].metric, measure.name)

    def donor(cell: Cell, _: int) -> Tensor:
        return donors.values[cell.layer, cell.head][cell.source]

    def already(cell: Cell) -> bool:
        return donor(cell, 0).equal(own.values[cell.layer, cell.head][cell.position])

    header = Header(
        "patch",
        target.host.name,
        target.k,
        measure.name,
        {"clean": source.tokens, "corrupt": into.tokens},
        where.positions,
        where.own,
    )
    plan = Plan(
        target,
        header,
        into.ids,
        measure,
        where,
        runs,
        cells,
        {cell: sites[cell.layer, cell.head] for cell in cells},
        "write",
        donor,
        frozenset(cell for cell in cells if already(cell)),
    )
    return work(plan, nla, batch_size=batch_size, resume=resume)


def _check_apart(clean: float | None, corrupt: float | None, name: str) -> None:
    if clean is None or corrupt is None:
        raise ExperimentError(
            f"{name} is {clean} on the clean and {corrupt} on the corrupt prompt (None: no finite "
            "number), so no effect can be measured against them."
        )
    # Two runs that differ by rounding alone would make every effect noise.
    if abs(clean - corrupt) <= 1e-6 * max(abs(clean), abs(corrupt), 1e-30):
        raise ExperimentError(
            f"{name} is {clean:.6g} on the clean and {corrupt:.6g} on the corrupt prompt: there is "
            "no difference that a patch could restore. Choose answers in which the prompts differ."
        )
