"""What the client asks of vLLM, in this machine's engine or on a server.

A `Request` is one reply to generate. A `Backend` runs requests, in any order, and afterwards says
what was written for each vector. Several threads may run requests at the same time: they share
what the backend has under way, and the requests of an earlier call come first.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...checkpoint.reply import CLOSE

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

Measured = dict[int, tuple[float, float, float]]
"""Position of a marker → norm before, norm after, cosine."""


@dataclass(frozen=True)
class Request:
    """One reply to generate."""

    rows: Float[Tensor, "tokens d_model"]
    """The prompt; see `rows`."""
    keys: tuple[int, ...]
    """The names of its vectors in the receipts, marker by marker."""
    new_tokens: int
    """The longest reply, in tokens."""
    ends: tuple[int, ...] = ()
    """The ids that end a reply."""
    draw: dict[str, int | float] = field(default_factory=dict[str, "int | float"])
    """The arguments of its draws; empty if greedy. See `draws`."""
    compared: tuple[int, ...] = ()
    """Token ids to compare at the first generated token."""
    salt: str | None = None
    """Keeps it apart from all other requests in vLLM's prefix cache."""

    def parameters(self) -> dict[str, Any]:
        """Return the names and values that vLLM's ``SamplingParams`` and its HTTP API share."""
        return {
            "max_tokens": self.new_tokens,
            "temperature": 0.0,  # `draws` adds the noise, where there is some.
            "stop": [] if self.compared else [CLOSE],
            "include_stop_str_in_output": True,
            "stop_token_ids": list(self.ends),
        }


@dataclass(frozen=True)
class Output:
    """What vLLM generated for a request."""

    ids: list[int]
    """The tokens of the reply."""
    logprobs: dict[int, float] = field(default_factory=dict[int, float])
    """The log-probabilities of the request's `compared` ids, in nats."""


class Backend(Protocol):
    """Somewhere that vLLM runs."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the verbalizer computes in."""
        ...

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have, once it is started."""
        ...

    def start(self) -> None:
        """Start it, or check that it runs what the client expects; again, this does nothing."""
        ...

    def run(
        self, rows: Sequence[int], request: Callable[[int], Request]
    ) -> Generator[tuple[int, Output], None, None]:
        """Yield each row's number and its output, in the order in which they finish.

        Args:
            rows: The numbers of the rows.
            request: Makes the request of a row, in any thread; called shortly before it is sent,
                because a prompt's rows are large.
        """
        ...

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known."""
        ...

    def use_adapter(self, folder: Path) -> None:
        """Run requests with the adapter in this folder from now on.

        Raises:
            VerbalizationError: It cannot have another adapter.
        """
        ...

    def info(self) -> dict[str, Any]:
        """Return where it runs, as plain values."""
        ...

    def close(self) -> None:
        """Free it."""
        ...
