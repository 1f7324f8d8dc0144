"""Write a vector into the verbalizer's residual stream.

A verbalizer reads its vector at the marker token of a fixed prompt. If the prompt has several
markers, all get the same vector. Two operations are published:

* ``add`` at a block's output (norm-matched): ``h'_p = h_p + c * |h_p| * v / |v|``. The direction
  comes from the vector, the length from the residual that is already there.
  Source: Karvonen et al. 2025, *Activation Oracles*, eq. 1.
* ``replace`` at the output of the embedding module: ``h'_p = scale * v / |v|``. Gemma's embedding
  module multiplies by ``sqrt(d_model)``; the vector replaces the scaled embedding.
  Source: the verbalizers of the NLA paper.

To add an operation, register a function of the marker's residual, the vectors and
`Injection.scale` in `OPERATIONS`. Its name is then a valid ``operation=`` and a valid
``training.injection_mode`` of a sidecar, and the doctor reports it::

    def blend(hidden, vectors, scale):
        return (hidden + scaled_replacement(vectors, scale)).to(hidden.dtype)

    OPERATIONS["blend"] = blend
    nla = NLA("my/av", checkpoint=Injection("blend", "block", 3, scale=8.0))

>>> import torch
>>> hidden, vector = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
>>> norm_matched_add(hidden, vector)
tensor([[3., 9.]])
>>> scaled_replacement(vector, scale=7.0)
tensor([[0., 7.]])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from .numeric import is_int, is_real

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

Site = Literal["block", "embedding"]


@dataclass(frozen=True)
class Injection:
    """Where and how a vector is written into the verbalizer."""

    operation: str = "add"
    """``add`` (norm-matched), ``replace`` (rescaled to `scale`), or another key of `OPERATIONS`."""
    site: Site = "block"
    """``block`` (the output of block `layer`) or ``embedding`` (the embedding module's output)."""
    layer: int | None = 1
    """The number of the block, from 0; ``None`` at the embedding."""
    scale: float | None = None
    """``add``: the coefficient `c` (``None`` means 1); ``replace``: the L2 norm of the result. Any
    other operation defines its own meaning."""

    def __post_init__(self) -> None:
        """Check the fields and that they fit each other."""
        if not is_operation(self.operation) or self.site not in ("block", "embedding"):
            known = " or ".join(map(repr, OPERATIONS))
            raise CheckpointError(
                f"Injection(operation={shown(self.operation)}, site={shown(self.site)}): expected "
                f"the operation {known} and the site 'block' or 'embedding'. To add an operation: "
                "nnsight_nla.core.injection.OPERATIONS[name] = function."
            )
        if self.site == "block" and not is_int(self.layer, 0):
            raise CheckpointError(
                f"Injection(site='block', layer={shown(self.layer)}): expected the number of the "
                "block whose output is written, from 0, for example Injection(layer=1)."
            )
        if self.site == "embedding" and self.layer is not None:
            raise CheckpointError(
                f"Injection(site='embedding', layer={shown(self.layer)}): the embedding has no "
                "block number. Pass layer=None."
            )
        largest = torch.finfo(torch.float32).max
        if self.scale is not None and not (is_real(self.scale) and 0 < self.scale <= largest):
            raise CheckpointError(
                f"Injection(scale={shown(self.scale)}): expected a positive, finite number."
            )
        if self.operation == "replace" and self.scale is None:
            raise CheckpointError(
                "Injection(operation='replace') needs scale=, the L2 norm that the vector is "
                "scaled to; it has no default. For example: "
                "Injection('replace', 'embedding', None, 150.0)."
            )


def norm_matched_add(
    hidden: Float[Tensor, "*rows d_model"],
    vector: Float[Tensor, "*rows d_model"],
    coefficient: float = 1.0,
) -> Float[Tensor, "*rows d_model"]:
    """Add the direction of `vector`, scaled to the norm of `hidden` (Karvonen et al. 2025, eq. 1).

    Args:
        hidden: The residual at the marker, as the model computed it.
        vector: The vector to verbalize, of any norm except zero.
        coefficient: The multiple of ``|hidden|`` that is added; 1 in the paper.

    Returns:
        A new tensor in the dtype of `hidden`; norms are computed in float32.
    """
    wide = hidden.float()
    added = coefficient * wide.norm(dim=-1, keepdim=True) * unit(vector.to(wide.device))
    return (wide + added).to(hidden.dtype)


def scaled_replacement(
    vector: Float[Tensor, "*rows d_model"], scale: float
) -> Float[Tensor, "*rows d_model"]:
    """Scale `vector` to the L2 norm `scale`, in float32."""
    return scale * unit(vector)


def unit(vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """Scale each vector to the L2 norm 1, in float32; a zero vector stays zero."""
    # Divide by the largest entry first: float32 squares of 1e20 overflow, those of 1e-25 vanish.
    least = torch.finfo(torch.float32).tiny
    wide = vectors.float()
    wide = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(least)
    return wide / wide.norm(dim=-1, keepdim=True).clamp_min(least)


def added(
    hidden: Float[Tensor, "*rows d_model"],
    vectors: Float[Tensor, "*rows d_model"],
    scale: float | None,
) -> Float[Tensor, "*rows d_model"]:
    """Apply ``add``: `norm_matched_add` with the coefficient `scale`, or 1."""
    return norm_matched_add(hidden, vectors, 1.0 if scale is None else scale)


def replaced(
    hidden: Float[Tensor, "*rows d_model"],
    vectors: Float[Tensor, "*rows d_model"],
    scale: float | None,
) -> Float[Tensor, "*rows d_model"]:
    """Apply ``replace``: `scaled_replacement` in the dtype and on the device of `hidden`."""
    length = cast("float", scale)  # Injection requires one for a replacement.
    return scaled_replacement(vectors.to(hidden.device), length).to(hidden.dtype)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, float | None], Tensor]] = {
    "add": added,
    "replace": replaced,
}
"""The registered operations: name to a function of (residuals, vectors, scale).

A function gets the residuals at the marker ``[rows, d_model]`` and one raw vector per row. It
returns a new tensor of the residuals' shape, dtype and device. Remote requests send the function's
source, so it may use only torch and names defined in its own module.
"""


def is_operation(name: object) -> bool:
    """Return whether `name` is a key of `OPERATIONS`."""
    return isinstance(name, str) and name in OPERATIONS


def write(
    hidden: Float[Tensor, "batch seq d_model"],
    vectors: Float[Tensor, "batch d_model"],
    position: int | Sequence[int],
    injection: Injection,
    given: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """Return a copy of `hidden` with one vector per row written at `position`.

    Args:
        hidden: The output of the injection site. It may be under autograd, so it is not edited.
        vectors: One raw vector per row, of any norm except zero.
        position: The marker's position, or several, the same in every row.
        injection: The operation and its scale.
        given: Mask of the rows that get their vector; ``None`` means all. The other rows keep the
            marker's own residual, which is the ``null`` control.

    Returns:
        A new tensor, bit-identical to `hidden` at all other positions.
    """
    operation = OPERATIONS[injection.operation]
    result = hidden.clone()
    for site in [position] if isinstance(position, int) else position:
        marker = hidden[:, site]
        written = operation(marker, vectors, injection.scale)
        if given is not None:
            written = torch.where(given.to(hidden.device)[:, None], written, marker)
        result[:, site] = written
    return result


def write_slots(
    hidden: Float[Tensor, "batch seq d_model"],
    vectors: Float[Tensor, "batch slots d_model"],
    positions: Int[Tensor, "batch slots"],
    injection: Injection,
) -> Float[Tensor, "batch seq d_model"]:
    """Return a copy of `hidden` with each vector of each row written at its own position.

    Args:
        hidden: The output of the injection site. It may be under autograd, so it is not edited.
        vectors: The raw vectors of each row, in the order of its slots.
        positions: Where each is written; a negative position writes nothing.
        injection: The operation and its scale.

    Returns:
        A new tensor, bit-identical to `hidden` at all other positions.
    """
    rows, slots = (positions >= 0).nonzero(as_tuple=True)
    chosen = vectors[rows.to(vectors.device), slots.to(vectors.device)]
    rows, columns = rows.to(hidden.device), positions[rows, slots].to(hidden.device)
    result = hidden.clone()
    written = OPERATIONS[injection.operation](hidden[rows, columns], chosen, injection.scale)
    result[rows, columns] = written
    return result


def unusable(vectors: Float[Tensor, "rows d_model"]) -> dict[int, str]:
    """Find the rows that have no direction: zero, NaN or infinite.

    Returns:
        Row number to reason; empty if every row can be written.
    """
    vectors = vectors.float()  # As they are written: float64 has a larger range.
    finite = torch.isfinite(vectors).all(dim=-1).cpu()
    nonzero = (vectors != 0).any(dim=-1).cpu()
    reasons: dict[int, str] = {}
    for row in torch.nonzero(~(finite & nonzero)).flatten().tolist():
        if nonzero[row] and bool(torch.isnan(vectors[row]).any()):
            reasons[row] = "has NaN in it"
        else:
            reasons[row] = "is infinite" if nonzero[row] else "is zero, it has no direction"
    return reasons
