"""What the modules below the facade take in place of an `NLA`.

`Explains` turns vectors into explanations, `Reconstructs` turns texts back into vectors, and
`Target` is the model that is read. Functions in ``evaluation``, ``experiments``, ``reading``,
``doctor``, ``bulk`` and ``training`` are typed by these, so that none of them imports the facade.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight.modeling.transformers import TransformersModel
    from torch import Tensor

    from ..checkpoint.checkpoint import Checkpoint
    from ..checkpoint.prompt import Prompt
    from ..core.baseline import Baseline
    from ..core.sampling import Sampling
    from ..models.hosts import Positions
    from ..models.runtime import Runtime
    from ..models.target import Target
    from .handle import Explanation


class Explains(Protocol):
    """Something that explains vectors; `NLA` is one."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What the verbalizer was trained with."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The verbalizer's prompt."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen unless a call says otherwise."""
        ...

    @property
    def av(self) -> TransformersModel:
        """The verbalizer's nnsight model."""
        ...

    @property
    def runtime(self) -> Runtime:
        """Runs the verbalizer's model."""
        ...

    @property
    def remote(self) -> bool:
        """Whether the verbalizer runs on an NDIF host."""
        ...

    @property
    def pending(self) -> tuple[Explanation, ...]:
        """The reachable handles that have no text yet."""
        ...

    def layer(self, model: Target) -> Any:
        """Return the handle on the residual of `model` that the verbalizer was trained on."""
        ...

    def positions(self, model: Target, prompts: str | Sequence[Any]) -> list[Positions]:
        """Return the real positions of each prompt in a padded batch."""
        ...

    def explain(
        self,
        vectors: Float[Tensor, "*shape d_model"],
        *,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Sampling | None = None,
    ) -> Explanation:
        """Capture vectors to be explained."""
        ...

    def explain_nothing(self) -> Explanation:
        """Return the null control: the verbalizer's text with nothing written at the marker."""
        ...

    def resolve(self, handles: Explanation | Iterable[Explanation] | None = None) -> None:
        """Verbalize what is pending, or only these handles."""
        ...

    @property
    def spec(self) -> dict[str, Any] | None:
        """What the NLA was made from, ``None`` where live models were passed."""
        ...

    @property
    def batch_size(self) -> int:
        """The number of texts per verbalizer batch."""
        ...

    @batch_size.setter
    def batch_size(self, rows: int | Literal["auto"]) -> None: ...


class Reconstructs(Protocol):
    """Something that turns texts back into vectors; an `NLA` with a reconstructor is one."""

    @property
    def has_reconstructor(self) -> bool:
        """Whether texts can be turned back into vectors."""
        ...

    @property
    def baseline(self) -> Baseline | None:
        """The denominator of every FVE."""
        ...

    def reconstruct(self, text: Any) -> Float[Tensor, "*shape d_model"]:
        """Turn texts back into vectors of the texts' shape."""
        ...

    @property
    def ar(self) -> TransformersModel:
        """The reconstructor's nnsight model."""
        ...


class ExplainsAndReconstructs(Explains, Reconstructs, Protocol):
    """Both directions, as `NLA` has them."""
