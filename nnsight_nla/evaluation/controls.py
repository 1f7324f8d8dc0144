"""Controls: what the verbalizer says with no vector, a random vector, or another row's vector.

An explanation means something only in comparison with these. A verbalizer that writes the same text
for a random direction, or with nothing injected, does not describe your vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..core.numeric import is_int
from ..errors import VerbalizationError, shown
from ..explanation.arguments import check_vectors
from ..explanation.handle import Explanation

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation.protocols import Explains


@dataclass(frozen=True)
class Controls:
    """Explanations that do not depend on your vectors."""

    null: Explanation
    """The explanation with nothing injected at the marker; shape ``()``."""
    random: Explanation
    """Explanations of random directions, uniform on the sphere; shape ``(n,)``."""
    shuffled: Explanation | None
    """Explanations of other rows' vectors; shape ``(n,)``. ``None`` without vectors to shuffle."""
    order: tuple[int, ...] | None
    """Row i of `shuffled` explains the vector of row ``order[i]``, never its own."""


def controls(
    explains: Explains,
    n: int,
    d_model: int,
    like: Explanation | Float[Tensor, "*rows d_model"] | None,
    seed: int,
) -> Controls:
    """Make the null control, `n` random controls and, given vectors, `n` shuffled ones.

    Args:
        explains: The NLA.
        n: The number of rows of each control.
        d_model: The width of a vector.
        like: The vectors (or their explanation) that are shuffled, and whose norms the random
            directions get.
        seed: The seed of the random directions and of the order.

    Raises:
        VerbalizationError: `n` is not a positive integer, or there are too few vectors.
        InjectionError: `like` is not a floating-point tensor of that width.
    """
    if not is_int(n, 1):
        raise VerbalizationError(f"controls({shown(n)}): expected a whole number from 1.")
    if not is_int(seed):
        raise VerbalizationError(f"controls(seed={shown(seed)}): expected a whole number.")
    generator = torch.Generator().manual_seed(seed)
    if like is None:
        random = random_vectors(n, d_model, generator)
        return Controls(explains.explain_nothing(), explains.explain(random), None, None)
    vectors = like.vectors if isinstance(like, Explanation) else like
    check_vectors(vectors, d_model)
    vectors = vectors.detach().reshape(-1, d_model)
    rows = len(vectors)
    if rows < 2 or n > rows:
        raise VerbalizationError(
            f"controls({n}, like=...): {rows} rows cannot give {n} shuffled ones. Pass at least "
            f"{max(2, n)} vectors, or leave out like= for null and random controls only."
        )
    random = random_vectors(n, d_model, generator, norms=vectors[:n].float().norm(dim=-1).cpu())
    # A random cycle through all rows, so that no row gets its own vector.
    cycle = torch.randperm(rows, generator=generator, device="cpu").tolist()
    following = dict(zip(cycle, [*cycle[1:], cycle[0]], strict=True))
    order = tuple(following[row] for row in range(n))
    return Controls(
        explains.explain_nothing(),
        explains.explain(random),
        explains.explain(vectors[list(order)]),
        order,
    )


def random_vectors(
    n: int,
    d_model: int,
    generator: torch.Generator,
    norms: Float[Tensor, " n"] | None = None,
) -> Float[Tensor, "n d_model"]:
    """Draw random directions, uniform on the sphere.

    Args:
        n: The number of vectors.
        d_model: The width of a vector.
        generator: Draws the numbers.
        norms: The L2 norm of each; ``sqrt(d_model)`` unless given.
    """
    drawn = torch.randn(n, d_model, generator=generator, dtype=torch.float32, device="cpu")
    drawn = drawn / drawn.norm(dim=-1, keepdim=True)
    return drawn * (
        torch.full((n, 1), d_model**0.5, dtype=torch.float32, device="cpu")
        if norms is None
        else norms[:, None]
    )
