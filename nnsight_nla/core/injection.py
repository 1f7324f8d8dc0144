"""How a vector is written into the verbalizer: pure tensor maths.

A verbalizer reads its vector at the marker of a fixed prompt, or at several markers that all get
the same vector. Two ways of writing it there are published:

* ``add`` at a block's output (norm-matched): ``h'_p = h_p + c * |h_p| * v / |v|``. The direction
  comes from the vector, the length from the residual that is already there.
  Source: Karvonen et al. 2025, *Activation Oracles*, eq. 1.
* ``replace`` at the embedding's output: ``h'_p = scale * v / |v|``. "The output" matters where the
  embedding module multiplies by ``sqrt(d_model)`` (Gemma).
  Source: the verbalizers of the NLA paper.

A third way is one entry in `OPERATIONS`, a function of the marker's residual, the vectors and
`Injection.scale`. From then on it is an ``operation=`` like the other two, here, in a sidecar's
``training.injection_mode``, and in what the doctor reports::

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

from ..errors import CheckpointError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

Site = Literal["block", "embedding"]


@dataclass(frozen=True)
class Injection:
    """Where and how a vector is written into the verbalizer."""

    operation: str = "add"
    """``add`` (norm-matched, Karvonen et al. 2025), ``replace`` (rescaled to `scale`), or another
    name in `OPERATIONS`."""
    site: Site = "block"
    """``block``: the output of block `layer`; ``embedding``: the output of the embedding module."""
    layer: int | None = 1
    """The block whose output is written, counted from 0; ``None`` at the embedding."""
    scale: float | None = None
    """``add``: the coefficient of eq. 1 (``None`` is 1); ``replace``: the vector's new L2 norm;
    otherwise what the operation makes of it."""

    def __post_init__(self) -> None:
        """Refuse a combination that no verbalizer was trained with."""
        if not is_operation(self.operation) or self.site not in ("block", "embedding"):
            known = " or ".join(map(repr, OPERATIONS))
            raise CheckpointError(
                f"Injection(operation={self.operation!r}, site={self.site!r}): operation is "
                f"{known}, site is 'block' or 'embedding'. An operation of your own: "
                "nnsight_nla.core.injection.OPERATIONS[name] = function."
            )
        if self.site == "block" and not _is_index(self.layer):
            raise CheckpointError(
                f"Injection(site='block', layer={self.layer!r}): say at which block's output the "
                "vector is written, e.g. Injection(layer=1)."
            )
        if self.site == "embedding" and self.layer is not None:
            raise CheckpointError(
                f"Injection(site='embedding', layer={self.layer!r}): the embedding has no block "
                "number; write layer=None."
            )
        if self.scale is not None and not _is_positive(self.scale):
            raise CheckpointError(
                f"Injection(scale={self.scale!r}): a scale is a positive, finite number."
            )
        if self.operation == "replace" and self.scale is None:
            raise CheckpointError(
                "Injection(operation='replace') needs the L2 norm that the vector is brought to; "
                "an absent scale is never read as 'raw'. For example: "
                "Injection('replace', 'embedding', None, 150.0)."
            )


def norm_matched_add(
    hidden: Float[Tensor, "*rows d_model"],
    vector: Float[Tensor, "*rows d_model"],
    coefficient: float = 1.0,
) -> Float[Tensor, "*rows d_model"]:
    """Add `vector`'s direction at `hidden`'s own length (Karvonen et al. 2025, eq. 1).

    Args:
        hidden: The residual at the marker, as the model computed it.
        vector: The vector to verbalize, of any length but zero.
        coefficient: The multiple of ``|hidden|`` that is added; 1 in the paper.

    Returns:
        A new tensor in `hidden`'s dtype; norms are taken in float32.
    """
    wide = hidden.float()
    added = coefficient * wide.norm(dim=-1, keepdim=True) * unit(vector.to(wide.device))
    return (wide + added).to(hidden.dtype)


def scaled_replacement(
    vector: Float[Tensor, "*rows d_model"], scale: float
) -> Float[Tensor, "*rows d_model"]:
    """Bring `vector` to the L2 norm `scale`, in float32."""
    return scale * unit(vector)


def unit(vectors: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
    """Bring every vector to the L2 norm 1, in float32; a zero vector stays zero."""
    # The largest entry first: the float32 norm of entries near 1e20 (1e-25) overflows (vanishes).
    least = torch.finfo(torch.float32).tiny
    wide = vectors.float()
    wide = wide / wide.abs().amax(dim=-1, keepdim=True).clamp_min(least)
    return wide / wide.norm(dim=-1, keepdim=True).clamp_min(least)


def added(
    hidden: Float[Tensor, "*rows d_model"],
    vectors: Float[Tensor, "*rows d_model"],
    scale: float | None,
) -> Float[Tensor, "*rows d_model"]:
    """The operation ``add``: `norm_matched_add` with the coefficient `scale`, 1 when ``None``."""
    return norm_matched_add(hidden, vectors, 1.0 if scale is None else scale)


def replaced(
    hidden: Float[Tensor, "*rows d_model"],
    vectors: Float[Tensor, "*rows d_model"],
    scale: float | None,
) -> Float[Tensor, "*rows d_model"]:
    """The operation ``replace``: `scaled_replacement`, in `hidden`'s dtype and on its device."""
    length = cast("float", scale)  # Injection refuses a replacement without one.
    return scaled_replacement(vectors.to(hidden.device), length).to(hidden.dtype)


OPERATIONS: dict[str, Callable[[Tensor, Tensor, float | None], Tensor]] = {
    "add": added,
    "replace": replaced,
}
"""What can be done at a marker: name to a function of (residual, vectors, scale).

It gets the markers' residuals ``[rows, d_model]`` and a vector for each, raw, and returns what
stands there instead: a new tensor of `hidden`'s shape, dtype and device. It runs on a server too,
where it travels as source: it may use torch and what stands in its own body or its own module.
"""


def is_operation(name: object) -> bool:
    """Whether `name` is in `OPERATIONS`."""
    return isinstance(name, str) and name in OPERATIONS


def write(
    hidden: Float[Tensor, "batch seq d_model"],
    vectors: Float[Tensor, "batch d_model"],
    position: int | Sequence[int],
    injection: Injection,
    given: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch seq d_model"]:
    """Write one vector per row at `position`, leaving `hidden` itself untouched.

    Args:
        hidden: The output of the injection site; never edited in place (it may be under autograd).
        vectors: What to write, one vector per row of the batch, raw (any length but zero).
        position: The marker's position, the same in every row; several get the same vector each.
        injection: The operation and its scale.
        given: Rows that get their vector. The others keep the marker's own residual, which is the
            ``null`` control. All rows when ``None``.

    Returns:
        A new tensor, bit-identical to `hidden` at every other position.
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


def unusable(vectors: Float[Tensor, "rows d_model"]) -> dict[int, str]:
    """Name the rows that have no direction to write: zero, NaN or infinite.

    Returns:
        Row number to the reason, empty when every row can be written.
    """
    vectors = vectors.float()  # As they will be written: float64 reaches further.
    finite = torch.isfinite(vectors).all(dim=-1).cpu()
    nonzero = (vectors != 0).any(dim=-1).cpu()
    reasons: dict[int, str] = {}
    for row in torch.nonzero(~(finite & nonzero)).flatten().tolist():
        if nonzero[row] and bool(torch.isnan(vectors[row]).any()):
            reasons[row] = "has NaN in it"
        else:
            reasons[row] = "is infinite" if nonzero[row] else "is zero, it has no direction"
    return reasons


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_positive(value: object) -> bool:
    largest = torch.finfo(torch.float32).max
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= largest
