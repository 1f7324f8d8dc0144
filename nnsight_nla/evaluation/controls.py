"""Controls: what the verbalizer says when the vector is not there, random, or another row's.

An explanation is worth something only against these. A verbalizer that tells the same story for a
random direction, or with nothing written at all, is reciting.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ..errors import VerbalizationError
from ..explanation.handle import Explanation

if TYPE_CHECKING:
    from jaxtyping import Float


class Explains(Protocol):
    """What can turn vectors, or nothing at all, into explanations."""

    def explain(self, vectors: Float[Tensor, "*shape d_model"]) -> Explanation:
        """Explain vectors."""
        ...

    def explain_nothing(self) -> Explanation:
        """Explain the marker as it is, with nothing written."""
        ...


@dataclass(frozen=True)
class Controls:
    """Explanations that should know nothing of your vectors."""

    null: Explanation
    """Shape (): nothing was written at the marker."""
    random: Explanation
    """Shape (n,): random directions, uniform on the sphere."""
    shuffled: Explanation | None
    """Shape (n,): each row got another row's vector; ``None`` without vectors to shuffle."""
    order: tuple[int, ...] | None
    """Row i of `shuffled` was given the vector of row ``order[i]``, never its own."""


def controls(
    explains: Explains,
    n: int,
    d_model: int,
    like: Float[Tensor, "rows d_model"] | None,
    seed: int,
) -> Controls:
    """Make `n` random controls, `n` shuffled ones where there are vectors, and the null control.

    Args:
        explains: The NLA.
        n: How many rows each control has.
        d_model: The width of a vector.
        like: The vectors whose rows are shuffled, and whose norms the random ones get.
        seed: Of the random directions and of the order.
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:  # pyright: ignore
        raise VerbalizationError(f"controls({n!r}): how many? A whole number from 1.")
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(n, d_model, generator=generator)
    random = random / random.norm(dim=-1, keepdim=True)
    if like is None:
        scale = torch.full((n, 1), d_model**0.5)
        return Controls(explains.explain_nothing(), explains.explain(random * scale), None, None)
    rows = len(like)
    if rows < 2 or n > rows:
        raise VerbalizationError(
            f"controls({n}, like=...): {rows} rows cannot give {n} shuffled ones; pass at least "
            f"{max(2, n)} vectors, or none for random controls only."
        )
    # A random cycle through all rows: no row is left with its own vector.
    cycle = torch.randperm(rows, generator=generator).tolist()
    following = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    order = tuple(following[row] for row in range(n))
    scale = like[:n].float().norm(dim=-1, keepdim=True).cpu()
    return Controls(
        explains.explain_nothing(),
        explains.explain(random * scale),
        explains.explain(like[list(order)]),
        order,
    )
