"""One forward pass of a batch in which every row has its own intervention.

An intervention writes at a *site* of a block:

* ``residual``: the output of block L, ``[batch, seq, d_model]``.
* ``attention``: the output of the attention's last projection, which is added to the residual.
* ``mlp``: the output of the block's MLP.
* ``head``: head H's slice of that projection's *input*, ``[batch, seq, head_dim]``, where the
  configuration's heads tile it; what the head adds is this slice through its part of the matrix.

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
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..errors import ExperimentError, InjectionError, shown
from .model_interface import ModelInterface, SiteName, interface_of

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation import protocols
    from .metrics import Measure

Action = Literal["write", "add", "project"]
"""Replace a value by a vector, add it, or project out a unit vector."""

_ORDER = {"head": 0, "attention": 1, "mlp": 2, "residual": 3}
"""The order of a block's sites in its forward pass."""
_EXPLAINED = "explained"


@dataclass(frozen=True)
class Site:
    """One site of one block."""

    name: SiteName
    """Its kind."""
    layer: int
    """The block, counted from 0."""
    head: int | None
    """The head; ``None`` for the other sites."""
    envoy: Any
    """The envoy that is read and written; of a bridge, the hook point."""
    where: Literal["input", "output"]
    """Which side of it."""
    start: int
    """Its first column along the last axis."""
    stop: int
    """One past its last column."""

    @property
    def width(self) -> int:
        """The number of columns."""
        return self.stop - self.start

    @property
    def order(self) -> tuple[int, int]:
        """When the forward pass comes by: by block, then by its place in the block."""
        return self.layer, _ORDER[self.name]


@dataclass(frozen=True)
class Edit:
    """One write into one row."""

    row: int
    """The row of the batch."""
    position: int
    """The position in the prompt, counted from the left."""
    site: Site
    """The site that is written."""
    vector: Float[Tensor, " width"]
    """The vector that is written, added, or (a unit vector) projected out."""


@dataclass(frozen=True)
class Found:
    """The results of one forward pass."""

    values: Mapping[Hashable, Float[Tensor, "positions width"]]
    """The collected values, by the key they were asked for with; on the model's device."""
    residuals: Float[Tensor, "n d_model"] | None
    """The residuals at block K, float32, on the CPU."""
    answers: Float[Tensor, "rows columns"]
    """The logits that the metric needs, on the CPU."""
    top: list[int]
    """The token that each row predicts."""


@dataclass(frozen=True)
class Target:
    """A model and its verbalized block."""

    model: ModelInterface
    """The model."""
    layer: Any
    """The envoy or hook point of block K's output."""
    k: int
    """Its number."""

    @staticmethod
    def of(model: Any, nla: protocols.Explains, *, remote: bool) -> Target:
        """Check that `model` is one that the experiments can run.

        Raises:
            ExperimentError: `nla` is no NLA.
            InjectionError: It is not, or the verbalizer reads another model.
            NLAError: It cannot run remotely.
        """
        if not hasattr(nla, "explain") or not hasattr(nla, "layer"):
            raise ExperimentError(
                f"The second argument is {type(nla).__name__} {shown(nla)}: expected the NLA "
                "that explains the residuals, such as NLA(av)."
            )
        layer = nla.layer(model)
        return Target(interface_of(model, remote=remote), layer, int(nla.checkpoint.layer))

    def run(
        self,
        ids: Sequence[Sequence[int]],
        measure: Measure,
        *,
        edits: Iterable[Edit] = (),
        action: Action = "write",
        collect: Mapping[Any, Site] | None = None,
        read: Sequence[tuple[int, int]] = (),
    ) -> Found:
        """Run one forward pass.

        Args:
            ids: The rows, equally long.
            measure: Says which logits are needed.
            edits: The writes.
            action: The same for all of the edits.
            collect: Sites whose values at every position of the first row are kept.
            read: (row, position) of the residuals at block K to read, after the edits there.

        Raises:
            HostError: The host stayed away, or the request failed there.
            InjectionError: The forward pass of a bridge did not come by one of the sites.
        """
        planned: list[tuple[tuple[int, int], Hashable, Any]] = [
            (site.order, None, step) for site, step in _writes(edits, action)
        ]
        every = torch.arange(len(ids[0]), device="cpu")
        for key, site in (collect or {}).items():
            step = _read(site.envoy, site.where, site.start, site.stop, every * 0, every)
            planned.append((site.order, key, step))
        if read:
            at, positions = torch.tensor(list(read), device="cpu").T
            step = _read(self.layer, "output", 0, self.model.width, at, positions)
            planned.append(((self.k, len(_ORDER)), _EXPLAINED, step))
        planned.sort(key=lambda each: each[0])
        keys = [key for _, key, step in planned if step[0] == "read"]
        rows = torch.tensor([list(row) for row in ids], device="cpu")
        columns = None if measure.columns is None else list(measure.columns)
        values, last, top = self.model.forward(rows, [step for *_, step in planned], columns)
        found = dict(zip(keys, values, strict=True))
        residuals = found.pop(_EXPLAINED, None)
        return Found(
            found,
            None if residuals is None else residuals.float().cpu(),
            last.float().cpu(),
            [int(token) for token in top],
        )


def find_sites(
    model: ModelInterface, site: Any, layers: Any, heads: Any = None
) -> dict[tuple[int, int | None], Site]:
    """Find the sites of one kind, by layer and head.

    Args:
        model: The target.
        site: ``"residual"``, ``"attention"``, ``"mlp"`` or ``"head"``.
        layers: A layer, a list of them, or ``"all"``.
        heads: For ``"head"`` only: a head, a list of them, or ``None`` for all.

    Raises:
        ExperimentError: `site`, `layers` or `heads` is not among the choices.
        InjectionError: This architecture shows no such site.
    """
    if site not in get_args(SiteName):
        raise ExperimentError(
            f"site={shown(site)}: expected one of {', '.join(get_args(SiteName))}."
        )
    if heads is not None and site != "head":
        raise ExperimentError(
            f'heads={shown(heads)} goes with site="head", not with site={shown(site)}.'
        )
    found: list[Site] = []
    for layer in _numbers(layers, model.depth, "layers"):
        place, width = model.place(site, layer)
        if site == "head":
            found += _heads(model, place, width, layer, heads)
        else:
            found.append(Site(site, layer, None, place, "output", 0, model.width))
    return {(each.layer, each.head): each for each in found}


def _heads(
    model: ModelInterface, place: Any, width: int | None, layer: int, heads: Any
) -> list[Site]:
    count = model.heads
    if not count or width is None or width % count:
        raise InjectionError(
            f"{model.name}: the {count} heads of block {layer} do not tile the {width} inputs of "
            "the attention's last projection, so a head is not a slice of them. Use "
            'site="attention".'
        )
    size = width // count
    return [
        Site("head", layer, head, place, "input", head * size, (head + 1) * size)
        for head in _numbers("all" if heads is None else heads, count, "heads")
    ]


def _numbers(given: Any, count: int, name: str) -> list[int]:
    """Return `given` as numbers from 0 to ``count - 1``, in ascending order, each once."""
    try:
        chosen: list[Any] = [given] if isinstance(given, str) else list(given)
    except TypeError:
        chosen = [given]
    if isinstance(given, str) and given == "all":
        chosen = list(range(count))
    bad = [
        each
        for each in chosen
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < count
    ]
    if bad or not chosen:
        raise ExperimentError(
            f"{name}={shown(given)}: expected whole numbers from 0 to {count - 1}, a list of "
            "them, or 'all'."
        )
    return sorted(set(chosen))


def _writes(edits: Iterable[Edit], action: Action) -> list[tuple[Site, Any]]:
    """Return one step for each module side and columns that are written."""
    by_site: dict[tuple[Any, ...], list[Edit]] = {}
    for edit in edits:
        by_site.setdefault((edit.site.order, edit.site.start), []).append(edit)
    found: list[tuple[Site, Any]] = []
    for group in by_site.values():
        site = group[0].site
        rows = torch.tensor([edit.row for edit in group], device="cpu")
        positions = torch.tensor([edit.position for edit in group], device="cpu")
        vectors = torch.stack([edit.vector for edit in group])
        step = (action, site.envoy, site.where, site.start, site.stop, rows, positions, vectors)
        found.append((site, step))
    return found


def _read(envoy: Any, where: str, start: int, stop: int, rows: Tensor, positions: Tensor) -> Any:
    return ("read", envoy, where, start, stop, rows, positions, None)
