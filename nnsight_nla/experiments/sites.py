"""Where an intervention writes: the residual, the attention's output, the MLP's, or a head's.

All are found by structure, so one function serves Qwen, Llama, GPT-2 and what is built like them:

* ``residual``: the output of block L, ``[batch, seq, d_model]``.
* ``attention``: the output of the attention's last projection, which is what it adds.
* ``mlp``: the output of the block's MLP.
* ``head``: head H's slice of that projection's *input*, ``[batch, seq, head_dim]``, where the
  configuration's heads tile it; what the head adds is this slice through its part of the matrix.

Where each is in an nnsight model, `envoys` knows; where in a TransformerLens bridge, `bridge`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import InjectionError
from .errors import ExperimentError
from .model_interface import Host, host_of

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

SiteName = Literal["residual", "attention", "mlp", "head"]
"""What ``site=`` may be."""

ORDER = {"head": 0, "attention": 1, "mlp": 2, "residual": 3}
"""In which order a block's sites come in its forward pass."""


@dataclass(frozen=True)
class Site:
    """One place in one block."""

    name: SiteName
    """What it is."""
    layer: int
    """The block, counted from 0."""
    head: int | None
    """Which head, ``None`` for the other sites."""
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
        return self.layer, ORDER[self.name]


def find(
    model: TransformersModel | TransformerBridge, site: Any, layers: Any, heads: Any = None
) -> list[Site]:
    """The sites of one kind, by layer and head.

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
        raise ExperimentError(f"site={site!r}: expected one of {', '.join(get_args(SiteName))}.")
    if heads is not None and site != "head":
        raise ExperimentError(f'heads={heads!r} goes with site="head", not with site={site!r}.')
    host = host_of(model)
    found: list[Site] = []
    for layer in _numbers(layers, host.depth, "layers", "all"):
        if site == "head":
            found += _heads(host, layer, heads)
        else:
            places = {"residual": host.block, "attention": host.attention, "mlp": host.mlp}
            found.append(Site(site, layer, None, places[site](layer), "output", 0, host.width))
    return found


def _heads(host: Host, layer: int, heads: Any) -> list[Site]:
    projection, columns = host.projection(layer)
    count = host.heads
    if columns is None or columns % count:
        raise InjectionError(
            f"{host.name}: the {count} heads of block {layer} do not tile the {columns} inputs of "
            f"the attention's last projection, so a head is no slice there. Use "
            'site="attention".'
        )
    size = columns // count
    return [
        Site("head", layer, head, projection, "input", head * size, (head + 1) * size)
        for head in _numbers("all" if heads is None else heads, count, "heads", "all")
    ]


def _numbers(given: Any, count: int, name: str, everything: str) -> list[int]:
    """`given` as numbers from 0 to ``count - 1``, in ascending order, each once."""
    if isinstance(given, str):
        chosen: Sequence[Any] = range(count) if given == everything else [given]
    elif isinstance(given, int):
        chosen = [given]
    else:
        try:
            chosen = list(given)
        except TypeError:
            chosen = [given]
    bad = [
        each
        for each in chosen
        if isinstance(each, bool) or not isinstance(each, int) or not 0 <= each < count
    ]
    if bad or not chosen:
        raise ExperimentError(
            f"{name}={given!r}: expected whole numbers from 0 to {count - 1}, a list of them, or "
            f"{everything!r}."
        )
    return sorted(set(chosen))
