"""The records of a sweep: what a run gave, and what the sweep was made by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .reachability import Explained

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Outcome:
    """What one run gave."""

    metric: float | None
    """The metric; ``None`` where it is no finite number."""
    answer: str
    """The token that the model predicts."""
    residuals: Mapping[int, Float[Tensor, " d_model"]]
    """Explained position to the residual at block K there, float32, on the CPU; of a run with an
    intervention only those that it can change."""


@dataclass(frozen=True)
class Header:
    """What a sweep was made by, and all that has to be the same for it to be resumed."""

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
    """What else the values depend on: a method, a seed, a digest of the vector."""

    @property
    def baseline(self) -> str:
        """The run that is intervened on."""
        return "corrupt" if self.experiment == "patch" else "clean"

    @property
    def explained(self) -> Explained:
        """Where the residual is explained."""
        return Explained(self.positions, self.own)

    def differs_from(self, other: Header) -> list[tuple[str, Any, Any]]:
        """(field, the other's value, this one's) for each field that differs."""
        mine, theirs = asdict(self), asdict(other)
        return [(name, theirs[name], mine[name]) for name in mine if mine[name] != theirs[name]]
