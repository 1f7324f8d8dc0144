"""One forward pass of a batch in which every row has its own intervention.

Row i is written at its own place when the forward pass comes by, the residuals that are explained
are read at block K, and the last position's logits at the end::

    layer 0  row 0 @3, row 1 @4          written
    layer 1  row 2 @3, row 3 @4          written
    block K  rows 0..3 @-1               read
    layer 5  row 4 @3                    written: downstream of what is explained
    logits   rows 0..4                   read

All rows hold one prompt, so there is no padding and a position is the same in each.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..models.hosts import Positions
from .metrics import Measure
from .model_interface import Host, host_of
from .sites import ORDER, Site

if TYPE_CHECKING:
    from jaxtyping import Float

_EXPLAINED = "explained"


@dataclass(frozen=True)
class Edit:
    """One write into one row."""

    row: int
    """Which row of the batch."""
    position: int
    """Where in the prompt, counted from the left."""
    site: Site
    """In which module."""
    vector: Float[Tensor, " width"]
    """What is written, added, or (a unit vector) projected out."""


@dataclass(frozen=True)
class Found:
    """What one forward pass gave."""

    values: Mapping[Hashable, Float[Tensor, "positions width"]]
    """What was collected, by the key it was asked for with; on the model's device."""
    residuals: Float[Tensor, "n d_model"] | None
    """The residuals at block K, float32, on the CPU."""
    answers: Float[Tensor, "rows columns"]
    """What the metric needs, on the CPU."""
    top: list[int]
    """The token that each row predicts."""


@dataclass(frozen=True)
class Target:
    """A model and its verbalized block."""

    host: Host
    """The target, and where it runs."""
    layer: Any
    """The place of block K's output."""
    k: int
    """Its number."""

    @staticmethod
    def of(model: Any, nla: Any, *, remote: bool) -> Target:
        """Check that `model` is one that the experiments can run.

        Raises:
            InjectionError: It is none, or not one that the verbalizer reads.
            NLAError: It cannot run remotely.
        """
        layer = nla.layer(model)
        return Target(host_of(model, remote=remote), layer, int(nla.checkpoint.layer))

    def tokens(self, prompt: Any) -> Positions:
        """The ids and tokens of one prompt, as the model will read it."""
        return self.host.positions(prompt)

    def run(
        self,
        ids: Sequence[Sequence[int]],
        measure: Measure,
        *,
        edits: Iterable[Edit] = (),
        action: str = "write",
        collect: Mapping[Any, Site] | None = None,
        read: Sequence[tuple[int, int]] = (),
    ) -> Found:
        """One forward pass.

        Args:
            ids: The rows, equally long.
            measure: Says which logits are needed.
            edits: What is written.
            action: ``"write"``, ``"add"`` or ``"project"``, for all of the edits.
            collect: Sites whose values at every position of the first row are kept.
            read: (row, position) of the residuals at block K to read, after the edits there.

        Raises:
            HostError: The host stayed away, or the request failed there.
            InjectionError: The forward pass of a bridge did not come by one of the sites.
        """
        planned = [(site.order, None, step) for site, step in _writes(edits, action)]
        places = torch.arange(len(ids[0]))
        for key, site in (collect or {}).items():
            step = _read(site.envoy, site.where, site.start, site.stop, places * 0, places)
            planned.append((site.order, key, step))
        if read:
            at, positions = torch.tensor(list(read)).T
            step = _read(self.layer, "output", 0, self.host.width, at, positions)
            planned.append(((self.k, len(ORDER)), _EXPLAINED, step))
        planned.sort(key=lambda each: each[0])
        keys = [key for _, key, step in planned if step[0] == "read"]
        rows = torch.tensor([list(row) for row in ids])
        columns = None if measure.columns is None else list(measure.columns)
        values, last, top = self.host.forward(rows, [step for *_, step in planned], columns)
        found = dict(zip(keys, values, strict=True))
        residuals = found.pop(_EXPLAINED, None)
        return Found(
            found,
            None if residuals is None else residuals.float().cpu(),
            last.float().cpu(),
            [int(token) for token in top],
        )


def _writes(edits: Iterable[Edit], action: str) -> list[tuple[Site, Any]]:
    """One step for each module side and columns that are written."""
    by_site: dict[tuple[Any, ...], list[Edit]] = {}
    for edit in edits:
        by_site.setdefault((edit.site.order, edit.site.start), []).append(edit)
    found: list[tuple[Site, Any]] = []
    for group in by_site.values():
        site = group[0].site
        rows = torch.tensor([edit.row for edit in group])
        positions = torch.tensor([edit.position for edit in group])
        vectors = torch.stack([edit.vector for edit in group])
        step = (action, site.envoy, site.where, site.start, site.stop, rows, positions, vectors)
        found.append((site, step))
    return found


def _read(envoy: Any, where: str, start: int, stop: int, rows: Tensor, positions: Tensor) -> Any:
    return ("read", envoy, where, start, stop, rows, positions, None)
