"""What an FVE is a fraction *of*: the error of knowing nothing but the average direction.

The fraction of variance explained is ``1 - mse / denominator``. Between models the denominator
ranges from 0.03 to 0.92, so an FVE is worth nothing without it; a `Baseline` therefore carries the
data set's name and size beside the number, and every FVE of this package is printed with its own.

With the vectors L2-normalised to ``sqrt(d_model)`` and ``m`` their mean, two definitions are in
use; both follow from ``R = |m| / sqrt(d_model)`` alone, so a pass over the vectors that keeps one
sum is enough, and any number of vectors can be streamed:

* ``"variance"``: the mean squared distance per entry to ``m``, which is ``1 - R**2`` (the paper's);
* ``"mean_direction"``: the same to ``m`` brought back to ``sqrt(d_model)``, ``2 * (1 - R)``: what
  the best constant answer would score.

>>> import torch
>>> rows = torch.tensor([[2.0, 0.0], [0.0, 7.0]])
>>> baseline = Baseline.from_vectors(rows, name="two axes")
>>> print(baseline)
0.5000, the variance of 2 vectors: two axes
>>> round(baseline.fve(0.1), 3)
0.8
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from torch import Tensor

from ..errors import ReconstructionError
from .injection import unusable
from .similarity import normalise

if TYPE_CHECKING:
    from jaxtyping import Float

Definition = Literal["variance", "mean_direction"]
_ROUNDING = 1e-6  # What float32 leaves of nothing.
_WORDS = {"variance": "variance", "mean_direction": "distance to the mean direction"}


@dataclass(frozen=True)
class Baseline:
    """The denominator of an FVE, and the data it was measured on."""

    value: float
    """Mean squared error per entry, between vectors normalised to ``sqrt(d_model)``; 0 to 4."""
    name: str
    """The data set, for whoever reads the FVE."""
    n: int | None = None
    """How many vectors it was measured on, ``None`` where the source does not say."""
    definition: Definition = "variance"
    """``"variance"`` around the mean, or distance to the normalised ``"mean_direction"``."""
    norm: float | None = None
    """The mean L2 norm of the vectors as they were: the residual's natural scale."""

    def __post_init__(self) -> None:
        """Check every field, whoever filled it in."""
        if not _positive(self.value) or self.value > 4:
            raise ReconstructionError(
                f"Baseline value {self.value!r}: expected a mean squared error between normalised "
                "vectors, above 0 and at most 4."
            )
        if not isinstance(self.name, str) or not self.name.strip():  # pyright: ignore
            raise ReconstructionError(
                f"Baseline name {self.name!r}: expected the data set's name; an FVE is printed "
                "with it."
            )
        if self.definition not in get_args(Definition):
            raise ReconstructionError(
                f"Baseline definition {self.definition!r}: expected one of "
                f"{', '.join(get_args(Definition))}."
            )
        if self.n is not None and (
            not isinstance(self.n, int) or isinstance(self.n, bool) or self.n < 1  # pyright: ignore
        ):
            raise ReconstructionError(f"Baseline n {self.n!r}: expected a number of vectors.")
        if self.norm is not None and not _positive(self.norm):
            raise ReconstructionError(f"Baseline norm {self.norm!r}: expected a length above 0.")

    @staticmethod
    def from_vectors(
        vectors: Float[Tensor, "*shape d_model"] | Iterable[Float[Tensor, "*shape d_model"]],
        *,
        name: str,
        definition: Definition = "variance",
    ) -> Baseline:
        """Measure a baseline on vectors, all at once or streamed.

        Args:
            vectors: Raw residuals, or an iterable of batches of them (a generator is read once and
                never held).
            name: The data set's name.
            definition: Which of the two published denominators.

        Raises:
            ReconstructionError: Fewer than two vectors, an unusable one, or all of one direction.
        """
        total: Tensor | None = None
        count, norms = 0, 0.0
        for batch in _batches(vectors):
            rows = _rows(batch, count)
            if total is not None and rows.shape[-1] != len(total):
                raise ReconstructionError(
                    f"Vectors of width {rows.shape[-1]} after vectors of width {len(total)}; a "
                    "baseline is measured on the residuals of one model."
                )
            added = normalise(rows).double().sum(dim=0).cpu()
            total = added if total is None else total + added
            count += len(rows)
            norms += rows.double().norm(dim=-1).sum().item()
        if total is None or count < 2:
            raise ReconstructionError(
                f"A baseline of {count} vectors has no variance; pass at least two (thousands, "
                "from the texts that you will score)."
            )
        length = (total / count).norm().item() / math.sqrt(len(total))
        value = 1 - length**2 if definition == "variance" else 2 * (1 - length)
        if value < _ROUNDING:
            raise ReconstructionError(
                f"All {count} vectors point in one direction; no FVE can be measured against them."
            )
        return Baseline(value, name, count, definition, norms / count)

    @staticmethod
    def published(name: str) -> Baseline:
        """A denominator that was published with an NLA checkpoint.

        Args:
            name: One of `PUBLISHED`.

        Raises:
            ReconstructionError: None of that name.
        """
        if name not in PUBLISHED:
            raise ReconstructionError(
                f"No published baseline for {name!r}. There is one for "
                f"{', '.join(PUBLISHED)}; measure yours with Baseline.from_vectors(vectors, "
                "name=...)."
            )
        return PUBLISHED[name]

    def fve(self, mse: float) -> float:
        """The fraction of variance explained by reconstructions with this mean squared error."""
        return 1 - mse / self.value

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data; those that are not known are left out."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        of = "" if self.n is None else f" of {self.n:,} vectors"
        return f"{self.value:.4f}, the {_WORDS[self.definition]}{of}: {self.name}"


def _batches(vectors: object) -> Iterable[object]:
    several = isinstance(vectors, Iterable) and not isinstance(vectors, Tensor)
    return cast("Iterable[object]", vectors) if several else [vectors]


def _rows(batch: object, before: int) -> Tensor:
    if not isinstance(batch, Tensor) or not batch.is_floating_point() or batch.ndim == 0:
        got = f"{batch.dtype}" if isinstance(batch, Tensor) else type(batch).__name__
        raise ReconstructionError(
            f"Expected floating-point vectors [..., d_model] or batches of them, got {got}."
        )
    rows = batch.detach().reshape(-1, batch.shape[-1])
    bad = unusable(rows)
    if bad:
        row, why = next(iter(bad.items()))
        raise ReconstructionError(
            f"Vector {before + row} {why} ({len(bad)} of {len(rows)} such). Leave them out: "
            "vectors[vectors.norm(dim=-1) > 0]."
        )
    return rows


def _positive(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0  # pyright: ignore


def _paper(model: str, layer: int, value: float) -> Baseline:
    return Baseline(value, f"{model}, layer {layer}, as published with its NLA")


PUBLISHED: dict[str, Baseline] = {
    "Qwen/Qwen2.5-7B-Instruct": _paper("Qwen2.5-7B-Instruct", 20, 0.7335),
    "google/gemma-3-12b-it": _paper("Gemma-3-12B", 32, 0.0302),
    "google/gemma-3-27b-it": _paper("Gemma-3-27B", 41, 0.0579),
    "meta-llama/Llama-3.3-70B-Instruct": _paper("Llama-3.3-70B", 53, 0.9169),
}
"""The denominators of the paper's checkpoints, by the model they explain."""
