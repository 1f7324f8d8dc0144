"""The records of a sweep: its cells, the results of each run, and the texts.

The residual at the output of block K is explained, at some position q. An intervention in block L
at position p can change it in two cases only, because information moves up and to the right::

    L < K and p <= q      through the blocks between, by attention where p < q
    L = K and p = q       directly

Everywhere else the text *cannot* change, whatever the effect on the output. The table says so
explicitly, because "unchanged" would look like a finding.

>>> reach(2, 1, 3, 3), reach(4, 1, 3, 3)
('reaches', 'downstream of the verbalized layer')
>>> reach(3, 3, 3, 3), reach(3, 1, 3, 3), reach(0, 3, 3, 1)
('reaches', 'beside the explained position', 'after the explained position')
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ..evaluation.compare import texts

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation.handle import Explanation
    from ..explanation.protocols import Explains

REACHES = "reaches"
DOWNSTREAM = "downstream of the verbalized layer"
BESIDE = "beside the explained position"
AFTER = "after the explained position"


@dataclass(frozen=True, order=True)
class Cell:
    """One intervention at one place."""

    site: str
    """``residual``, ``attention``, ``mlp`` or ``head``."""
    layer: int
    """The block, counted from 0."""
    head: int | None
    """The head; ``None`` for the other sites."""
    position: int | None
    """The position in the prompt, counted from the left; ``None``: at every position at once."""
    source: int | None = None
    """For a patch: the position in the clean prompt that the value comes from."""
    kind: str = "patch"
    """The intervention: ``patch``, ``zero``, ``mean``, ``resample``, ``project``, ``steer``, or
    ``random 0``, ``random 1``, ... for the controls of a steer."""
    dose: float | None = None
    """The factor of a steering vector."""


def reach(layer: int, position: int | None, k: int, explained: int) -> str:
    """Return whether an intervention reaches the residual that is explained, and if not, why.

    Args:
        layer: The block that is written in, at any of its sites.
        position: The position that is written; ``None`` for all of them.
        k: The block whose output is explained.
        explained: The position that is explained.
    """
    if layer > k:
        return DOWNSTREAM
    if position is None or position == explained:
        return REACHES
    if layer == k:
        return BESIDE
    return REACHES if position < explained else AFTER


@dataclass(frozen=True)
class Explained:
    """The positions whose residuals are explained: fixed ones, and perhaps each cell's own."""

    positions: tuple[int, ...]
    """Counted from the left of the prompt that is intervened on."""
    own: bool
    """Whether also the position that a cell writes at."""

    def of(self, cell: Cell) -> list[int]:
        """Return the positions explained for one cell, each once."""
        own = [cell.position] if self.own and cell.position is not None else []
        return list(dict.fromkeys([*self.positions, *own]))

    def reached(self, cell: Cell, k: int) -> list[int]:
        """Return those of them that the cell can change."""
        return [at for at in self.of(cell) if reach(cell.layer, cell.position, k, at) == REACHES]


@dataclass(frozen=True)
class Outcome:
    """The result of one run."""

    metric: float | None
    """The metric; ``None`` where it is not finite."""
    answer: str
    """The token that the model predicts."""
    residuals: Mapping[int, Float[Tensor, " d_model"]]
    """Explained position to the residual at block K there, float32, on the CPU; of a run with an
    intervention only those that it can change."""


@dataclass(frozen=True)
class Header:
    """The call that made a sweep; it has to be the same for the sweep to be resumed."""

    experiment: str
    """``patch``, ``ablate`` or ``steer``."""
    target: str
    """The model's name."""
    k: int
    """The verbalized layer: the output of block K."""
    metric: str
    """The metric in words."""
    tokens: Mapping[str, tuple[str, ...]]
    """The prompt of each run without an intervention, token by token."""
    positions: tuple[int, ...]
    """The explained positions that every cell shares."""
    own: bool
    """Whether each cell's own position is explained too."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Everything else that the values depend on: a method, a seed, a digest of the vector."""

    @property
    def baseline(self) -> str:
        """The run that is intervened on."""
        return "corrupt" if self.experiment == "patch" else "clean"

    @property
    def explained(self) -> Explained:
        """The positions whose residuals are explained."""
        return Explained(self.positions, self.own)

    def differs_from(self, other: Header) -> list[tuple[str, Any, Any]]:
        """Return (field, the other's value, this one's) for each field that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [(name, theirs[name], mine[name]) for name in mine if mine[name] != theirs[name]]


def effect(value: float | None, header: Header, runs: Mapping[str, Outcome]) -> float | None:
    """Return the effect of a run whose metric is `value`; see `Sweep.effect`."""
    base = runs[header.baseline].metric
    if value is None or base is None:
        return None
    if header.experiment != "patch":
        return value - base
    clean = runs["clean"].metric
    if clean is None or clean == base:
        return None
    found = (value - base) / (clean - base)
    return found if math.isfinite(found) else None


@dataclass(frozen=True)
class Said:
    """The text of one vector."""

    text: str | None = None
    """The explanation; ``None`` where there is none."""
    error: str | None = None
    """The reason why a vector has no text."""
    warnings: tuple[str, ...] = ()
    """The caveats of the text."""


NOT_EXPLAINED = Said(error="was not explained; give the NLA: from_parquet(path, nla=nla)")
"""A vector that no verbalizer has seen yet."""


class Texts:
    """Vectors to texts: each different vector is explained once, all by one ``explain()``.

    Two cells often leave the same residual, where an intervention cannot reach it or writes what
    was there already; and a sweep that is resumed has some texts already.
    """

    def __init__(
        self, vectors: Sequence[Tensor], nla: Explains | None, known: Texts | None = None
    ) -> None:
        """Capture the vectors that have no text yet; nothing is generated before it is asked for.

        Args:
            vectors: ``[d_model]`` each, float32, on the CPU.
            nla: Explains them; ``None`` where the known texts have to do.
            known: The texts of an earlier sweep.
        """
        self._said: dict[bytes, Said] = {} if known is None else known.settled()
        fresh = {_key(vector): vector for vector in vectors}
        waiting = {key: vector for key, vector in fresh.items() if key not in self._said}
        self._waiting = list(waiting)
        self.handle: Explanation | None = None
        """The explanations of the vectors that had no text yet."""
        if waiting and nla is not None:
            self.handle = nla.explain(torch.stack(list(waiting.values())))

    def of(self, vector: Tensor | None) -> Said:
        """Return the text of a vector; generate the missing texts where it has none yet.

        Raises:
            VerbalizationError: Verbalizing failed; what had settled is kept.
        """
        if vector is None:
            return Said()
        key = _key(vector)
        if key not in self._said and self.handle is not None:
            self._settle()
        return self._said.get(key, NOT_EXPLAINED)

    def learn(self, vector: Tensor, said: Said) -> None:
        """Take over the text of a vector from elsewhere; nothing where there is none."""
        if said.text is not None or said.error is not None:
            self._said[_key(vector)] = said

    def settled(self) -> dict[bytes, Said]:
        """Return the texts there are by now; never runs a model."""
        if self.handle is not None and self.handle.resolved:
            self._settle()
        return dict(self._said)

    def _settle(self) -> None:
        if self.handle is not None:
            warnings = cast("list[tuple[str, ...]]", self.handle.warnings)
            rows = zip(self._waiting, texts(self.handle), warnings, strict=True)
            self._said |= {key: Said(*said, tuple(notes)) for key, said, notes in rows}


def _key(vector: Tensor) -> bytes:
    return vector.numpy().tobytes()
