"""What the client asks of vLLM, in this machine's engine or on a server.

A `Request` is one reply to generate. A `Backend` runs requests, in any order, and afterwards says
what was written for each vector.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
    key: int
    """The name of its vector in the receipts."""
    new_tokens: int
    """The longest reply, in tokens."""
    ends: tuple[int, ...]
    """The ids that end a reply."""
    draw: dict[str, int | float]
    """The arguments of its draws; empty if greedy. See `draws`."""
    salt: str | None = None
    """Keeps it apart from all other requests in vLLM's prefix cache."""

    def parameters(self) -> dict[str, Any]:
        """Return the names and values that vLLM's ``SamplingParams`` and its HTTP API share."""
        return {
            "max_tokens": self.new_tokens,
            "temperature": 0.0,  # `draws` adds the noise, where there is some.
            "stop": [CLOSE],
            "include_stop_str_in_output": True,
            "stop_token_ids": list(self.ends),
        }


class Backend(Protocol):
    """Somewhere that vLLM runs."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the verbalizer computes in."""
        ...

    @property
    def rows(self) -> int:
        """How many requests one call of `run` should have."""
        ...

    def start(self) -> None:
        """Start it, or check that it runs what the client expects; again, this does nothing."""
        ...

    def run(self, requests: Sequence[Request]) -> Iterator[tuple[int, list[int]]]:
        """Yield a request's number and the ids of its reply, in the order in which they finish."""
        ...

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known."""
        ...

    def info(self) -> dict[str, Any]:
        """Return where it runs, as plain values."""
        ...

    def close(self) -> None:
        """Free it."""
        ...
