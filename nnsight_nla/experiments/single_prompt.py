"""What an experiment on one prompt starts from: the checked arguments and the untouched run."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..models import hosts
from .alignment import listed
from .forward import Target
from .grid import Plan, outcome, untouched
from .metrics import Measure, bind
from .reachability import Cell, Explained, explained
from .records import Header
from .sites import Site, find

Key = tuple[int, int | None]
"""A layer and a head, ``None`` where the site is no head."""


@dataclass(frozen=True)
class Setting:
    """One prompt, and where it is written, measured and explained."""

    target: Target
    """The model."""
    text: hosts.Positions
    """The prompt's ids and tokens."""
    measure: Measure
    """What is measured."""
    where: Explained
    """Where the residual is explained."""
    sites: Mapping[Key, Site]
    """The modules, by layer and head."""
    positions: tuple[int | None, ...]
    """Where is written; ``None``: everywhere at once."""

    @staticmethod
    def of(
        model: Any,
        nla: Any,
        prompt: Any,
        *,
        layers: Any,
        positions: Any,
        metric: Any,
        explain_at: Any,
        site: Any,
        heads: Any,
        remote: bool,
    ) -> Setting:
        """Check the arguments that `ablate` and `steer` share.

        Raises:
            ExperimentError: One of them does not fit.
            InjectionError: The model shows no such site, or is not the verbalizer's.
        """
        target = Target.of(model, nla, remote=remote)
        text = target.tokens(prompt)
        every = isinstance(positions, str) and positions == "every"
        return Setting(
            target,
            text,
            bind(metric, target.host.tokenizer),
            explained(explain_at, len(text.ids)),
            {(each.layer, each.head): each for each in find(model, site, layers, heads)},
            (None,) if every else tuple(listed(positions, len(text.ids), also=("every",))),
        )

    @property
    def width(self) -> int:
        """The width of every site."""
        return next(iter(self.sites.values())).width

    def cells(self, kinds: Iterable[tuple[str, float | None]]) -> list[Cell]:
        """A cell for each site, position and (kind, dose)."""
        return [
            Cell(site.name, layer, head, position, kind=kind, dose=dose)
            for ((layer, head), site), position, (kind, dose) in itertools.product(
                self.sites.items(), self.positions, list(kinds)
            )
        ]

    def plan(
        self,
        experiment: str,
        cells: list[Cell],
        action: str,
        vector: Callable[[Cell, int], Tensor],
        settings: Mapping[str, Any],
    ) -> Plan:
        """Run the prompt untouched, and say what is to be done to it.

        Args:
            experiment: ``ablate`` or ``steer``.
            cells: What is done where.
            action: ``"write"``, ``"add"`` or ``"project"``.
            vector: What is written for a cell at a position.
            settings: What else the values depend on.
        """
        target, measure = self.target, self.measure
        at = {place: place for cell in cells for place in self.where.of(cell)}
        own = untouched(target, self.text.ids, measure, at)
        if measure.columns is None:
            measure = replace(measure, runs={"clean": own.answers[0]})
        header = Header(
            experiment,
            target.host.name,
            target.k,
            measure.name,
            {"clean": self.text.tokens},
            self.where.positions,
            self.where.own,
            settings,
        )
        return Plan(
            target,
            header,
            self.text.ids,
            measure,
            self.where,
            {"clean": outcome(own, measure, target, at)},
            cells,
            {cell: self.sites[cell.layer, cell.head] for cell in cells},
            action,
            vector,
        )
