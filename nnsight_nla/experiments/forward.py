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

import inspect
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor

from .. import hosts
from ..errors import InjectionError
from ..ndif import send
from .edits import answers, perform
from .metrics import Measure
from .sites import ORDER, Site

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel

# Shipped as source with a request: the host has none of ours.
nnsight.register("nnsight_nla.experiments.edits")

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
    """A model, its verbalized block, and where it runs."""

    model: TransformersModel
    """The target."""
    layer: Any
    """The envoy of block K."""
    k: int
    """Its number."""
    remote: bool
    """Whether the forwards run on the configured NDIF host."""

    @staticmethod
    def of(model: Any, nla: Any, *, remote: bool) -> Target:
        """Check that `model` is one that the experiments can run.

        Raises:
            InjectionError: It is none, or not one that the verbalizer reads.
        """
        from nnsight import TransformersModel

        layer = nla.layer(model)
        if not isinstance(model, TransformersModel):
            raise InjectionError(
                f"The experiments run on an nnsight TransformersModel, got {type(model).__name__}. "
                "Write: TransformersModel(name, task='text-generation')."
            )
        return Target(model, layer, int(nla.checkpoint.layer), remote)

    def tokens(self, prompt: Any) -> hosts.Positions:
        """The ids and tokens of one prompt, as the model will read it."""
        return hosts.positions(self.model, [prompt])[0]

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
        """
        planned = [(site.order, None, step) for site, step in _writes(edits, action)]
        places = torch.arange(len(ids[0]))
        for key, site in (collect or {}).items():
            step = _read(site.envoy, site.where, site.start, site.stop, places * 0, places)
            planned.append((site.order, key, step))
        if read:
            rows, positions = torch.tensor(list(read)).T
            step = _read(self.layer, "output", 0, hosts.width(self.model), rows, positions)
            planned.append(((self.k, len(ORDER)), _EXPLAINED, step))
        planned.sort(key=lambda each: each[0])
        keys = [key for _, key, step in planned if step[0] == "read"]
        values, last, top = self._forward(ids, [step for *_, step in planned], measure.columns)
        found = dict(zip(keys, values, strict=True))
        residuals = found.pop(_EXPLAINED, None)
        return Found(
            found,
            None if residuals is None else residuals.float().cpu(),
            last.float().cpu(),
            [int(token) for token in top],
        )

    def _forward(
        self, ids: Sequence[Sequence[int]], steps: list[Any], columns: tuple[int, ...] | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        model = self.model
        rows = torch.tensor([list(row) for row in ids])
        wanted = None if columns is None else list(columns)
        options: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(model._module.forward).parameters:
            options["logits_to_keep"] = 1
        if not self.remote:
            return _trace(model, rows, steps, wanted, options)
        options["remote"] = True
        return send(
            lambda: _trace(model, rows, steps, wanted, options),
            f"The request to run {len(rows)} rows of {hosts.describe(model)}",
        )


def _trace(
    model: Any, rows: Tensor, steps: list[Any], columns: list[int] | None, options: dict[str, Any]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The block, shipped as it stands where it runs remotely."""
    with torch.no_grad(), model.trace(rows, **options):
        values = nnsight.save(perform(steps))
        logits = model.output.logits[:, -1]
        last = answers(logits, columns).save()
        top = logits.argmax(dim=-1).save()
    return list(values), last, top


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
