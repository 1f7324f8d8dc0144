"""Choose what generates the verbalizer's texts.

The queue settles its handles through one object with a small protocol, a `TextEngine`. The
`Verbalizer` itself is one: it decodes in this process, or on an NDIF host, by nnsight. Another kind
of engine is a function in `ENGINES`::

    make = engine_maker("vllm", EngineOptions(vllm={"max_num_seqs": 512}))
    engine = make(verbalizer)
    with engine.use():
        for row, reply in engine.verbalize(vectors, given, samples, sampling): ...
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from ..errors import CheckpointError, VerbalizationError, shown

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor

    from ..checkpoint.prompt import Prompt
    from ..core.sampling import Sampling
    from ..explanation.records import Reply
    from .choosing import Choices
    from .streaming import Watch
    from .verbalizer import Verbalizer

EngineName = Literal["fast", "generate", "vllm"]
ARGUMENTS = ("engine", "vllm", "url")
"""The arguments of `NLA` that choose the engine, which no model is loaded with."""


class TextEngine(Protocol):
    """Something that turns vectors into replies."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the verbalizer computes in."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether it verbalizes for several threads at once, and is fuller then."""
        ...

    def turn(self) -> AbstractContextManager[Any]:
        """Wait until no other thread verbalizes; where `concurrent`, this does not wait."""
        ...

    def use(self) -> AbstractContextManager[Any]:
        """Make ready to verbalize: load weights, start what has to run."""
        ...

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
        prompts: Sequence[Prompt] | None = None,
        *,
        watch: Watch | None = None,
    ) -> Generator[tuple[int, Reply | str], None, None]:
        """Write one vector per row and generate; call it inside `use`.

        Args:
            vectors: The unscaled vectors; a row that is not `given` may have any values.
            given: Which rows get their vector; the others are the null control.
            samples: The sample number of each row.
            sampling: How tokens are chosen.
            prompts: The prompt of each row, of one length, for an oracle.
            watch: Called after each step with each row that is not finished, by an engine that can;
                a row for which it returns true is dropped.

        Yields:
            A row's number and its reply, in the order in which rows finish; or the reason why this
            vector has no text, which becomes the row's error. Closing it ends the generation.
        """
        ...

    def choose(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        prompts: Sequence[Prompt],
        choices: Choices,
    ) -> Generator[tuple[int, Reply | str], None, None]:
        """Compare the choices of each row's question; the rest is as for `verbalize`."""
        ...

    def rows_that_fit(self, new_tokens: int) -> int:
        """Return how many rows one call of `verbalize` may have."""
        ...

    def engine_info(self) -> dict[str, Any]:
        """Return the engine's name, and what a reader should know of it, as plain values."""
        ...

    def unload(self) -> None:
        """Free what the engine itself holds; it is made again when needed."""
        ...


Maker = Callable[["Verbalizer"], TextEngine]
"""Makes the engine of a verbalizer; engines of one maker share what is expensive."""


@dataclass(frozen=True)
class EngineOptions:
    """What a caller said about the engine, and what it may need to know of the models."""

    load: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The keyword arguments that the verbalizer is loaded with by nnsight."""
    vllm: Mapping[str, Any] | None = None
    """The keyword arguments of vLLM's ``LLM``."""
    url: str | None = None
    """The address of a running server."""
    live: bool = False
    """Whether the verbalizer is a model that the caller loaded."""
    remote: bool = False
    """Whether it is to run on an NDIF host."""


def engine_maker(name: object, options: EngineOptions) -> Maker:
    """Return the maker of an engine.

    Raises:
        VerbalizationError: There is no engine of that name, an option is for another engine, or
            something is not installed.
    """
    if name not in get_args(EngineName):
        listed = ", ".join(map(repr, get_args(EngineName)))
        raise VerbalizationError(f"engine={shown(name)}: expected one of {listed}.")
    if name != "vllm":
        for option in ("vllm", "url"):
            if (value := getattr(options, option)) is not None:
                raise VerbalizationError(
                    f"{option}={shown(value)} is for engine='vllm', not for engine={name!r}. "
                    "Pass engine='vllm' too, or leave it out."
                )
    return ENGINES[str(name)](options)


def _own(_: EngineOptions) -> Maker:
    return lambda verbalizer: verbalizer


def _vllm(options: EngineOptions) -> Maker:
    from .vllm.engine import maker

    return maker(options)


ENGINES: dict[str, Callable[[EngineOptions], Maker]] = {
    "fast": _own,
    "generate": _own,
    "vllm": _vllm,
}
"""The engines by name: each makes a `Maker` from the caller's options."""


def served_source(url: str | None) -> str:
    """Return the name of the verbalizer that a server runs.

    Raises:
        CheckpointError: There is no address to ask.
        HostError: The server does not answer, or serves no verbalizer.
    """
    if url is None:
        raise CheckpointError(
            "NLA() needs a verbalizer: NLA('path or id'), or NLA(url='http://...')."
        )
    from .vllm.served import source_at

    return source_at(url)
