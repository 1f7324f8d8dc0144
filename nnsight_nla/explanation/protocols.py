"""Protocols that the modules below the facade accept in place of an `NLA`.

`Explains` turns vectors into explanations, `Reconstructs` turns texts back into vectors, and
`Target` is the model whose residuals are read. Functions in ``evaluation``, ``experiments``,
``reading``, ``doctor``, ``bulk`` and ``training`` are annotated with these, so that none of them
imports the facade.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight.modeling.transformers import TransformersModel
    from torch import Tensor

    from ..checkpoint.checkpoint import Checkpoint
    from ..checkpoint.dates import Date
    from ..checkpoint.origin import Claims, Kind, Origin
    from ..checkpoint.prompt import Prompt
    from ..core.baseline import Baseline
    from ..core.nesting import Nested
    from ..core.sampling import Sampling
    from ..models.hosts import Positions, Side
    from ..models.runtime import Runtime
    from ..models.target import Target
    from .asked import AskOptions
    from .handle import Explanation
    from .padding import At


class Explains(Protocol):
    """Something that explains vectors, such as an `NLA`."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The settings that the verbalizer was trained with."""
        ...

    @property
    def prompt(self) -> Prompt:
        """The verbalizer's prompt."""
        ...

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen by default."""
        ...

    @property
    def av(self) -> TransformersModel:
        """The verbalizer's nnsight model."""
        ...

    @property
    def runtime(self) -> Runtime:
        """The runtime of the verbalizer's model."""
        ...

    @property
    def remote(self) -> bool:
        """Whether the verbalizer runs on an NDIF host."""
        ...

    @property
    def url(self) -> str | None:
        """The address of the vLLM server that generates its texts, if one does."""
        ...

    @property
    def pending(self) -> tuple[Explanation, ...]:
        """The reachable handles that have no text yet."""
        ...

    def layer(self, model: Target, layer: int | None = None, *, claims: Claims = "check") -> Any:
        """Return the envoy of the residual of `model` that the verbalizer was trained on."""
        ...

    def positions(
        self,
        model: Target,
        prompts: str | Sequence[Any],
        *,
        padding_side: Side | None = None,
        prepend_bos: bool | None = None,
    ) -> list[Positions]:
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
        origin: Origin | None = None,
        claims: Claims = "check",
        layer: int | None = None,
        kind: Kind | None = None,
        at: At | None = None,
    ) -> Explanation:
        """Capture vectors, to be explained when a text is first read."""
        ...

    def ask(
        self,
        vectors: Float[Tensor, "*shape slots d_model"] | Sequence[Float[Tensor, "slots d_model"]],
        questions: Nested[str] | Sequence[str],
        *,
        choices: Sequence[str] | None = None,
        layer: int | None = None,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Sampling | None = None,
    ) -> Explanation:
        """Capture vectors, to be asked about when an answer is first read."""
        ...

    def asking(self, question: str, *, choices: Sequence[str] | None = None) -> Self:
        """Return this, an oracle, with a question that is asked about every explained vector."""
        ...

    @property
    def question(self) -> AskOptions | None:
        """That question; ``None`` where vectors are explained."""
        ...

    def explain_nothing(self) -> Explanation:
        """Return the null control: the verbalizer's text with nothing written at the marker."""
        ...

    def resolve(
        self,
        handles: Explanation | Iterable[Explanation] | None = None,
        *,
        on_text: Callable[[Any], Any] | None = None,
    ) -> None:
        """Verbalize all pending handles, or only these."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether several threads may verbalize at the same time, as on vLLM."""
        ...

    def on_date(self, date: Date) -> Self:
        """Return this with another date in its prompt."""
        ...

    @property
    def spec(self) -> dict[str, Any] | None:
        """The arguments that it can be rebuilt from; ``None`` if one of them is a live model."""
        ...

    @property
    def batch_size(self) -> int:
        """The number of texts per verbalizer batch."""
        ...

    @batch_size.setter
    def batch_size(self, rows: int | Literal["auto"]) -> None: ...


class Reconstructs(Protocol):
    """Something that turns texts back into vectors, such as an `NLA` with a reconstructor."""

    @property
    def has_reconstructor(self) -> bool:
        """Whether texts can be turned back into vectors."""
        ...

    @property
    def baseline(self) -> Baseline | None:
        """The denominator of the FVE; ``None`` if unknown."""
        ...

    def reconstruct(self, text: Any) -> Float[Tensor, "*shape d_model"]:
        """Turn a text, or nested lists of texts, back into vectors."""
        ...

    @property
    def ar(self) -> TransformersModel:
        """The reconstructor's nnsight model."""
        ...


class ExplainsAndReconstructs(Explains, Reconstructs, Protocol):
    """Something that does both, such as an `NLA` with a reconstructor."""
