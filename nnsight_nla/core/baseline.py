"""The denominator of the fraction of variance explained (FVE): ``fve = 1 - mse / denominator``.

The denominator is the error of a reconstruction that knows only the average direction. It ranges
from 0.03 to 0.92 between models, so an FVE says nothing without it. A `Baseline` therefore also
holds the name and the size of its data set, and this package prints every FVE with its baseline.

With the vectors L2-normalised to ``sqrt(d_model)`` and ``m`` their mean, two definitions are in
use. Both depend on ``R = |m| / sqrt(d_model)`` only, so one pass that sums the vectors is enough,
and any number of vectors can be streamed:

* ``"variance"``: the mean squared distance per entry to ``m``, which is ``1 - R**2`` (the
  definition of the NLA paper);
* ``"mean_direction"``: the same distance to ``m`` rescaled to ``sqrt(d_model)``, which is
  ``2 * (1 - R)``, the error of the best constant prediction.

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
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

import torch
from torch import Tensor

from ..errors import ReconstructionError, shown
from .injection import unusable
from .numeric import is_int, is_real
from .similarity import normalise

if TYPE_CHECKING:
    from jaxtyping import Float

Definition = Literal["variance", "mean_direction"]
_MSE = TypeVar("_MSE", float, Tensor)
_ROUNDING = 1e-6  # A variance below this is float32 rounding error.
_LABELS = {"variance": "variance", "mean_direction": "distance to the mean direction"}


@dataclass(frozen=True)
class Baseline:
    """The denominator of an FVE and the data set it was measured on."""

    value: float
    """A mean squared error per entry between vectors normalised to ``sqrt(d_model)``: 0 to 4."""
    name: str
    """The data set, printed with every FVE."""
    n: int | None = None
    """The number of vectors it was measured on; ``None`` if unknown."""
    definition: Definition = "variance"
    """``"variance"`` around the mean, or the distance to the rescaled ``"mean_direction"``."""
    norm: float | None = None
    """The mean L2 norm of the raw vectors: the natural scale of the residual."""

    def __post_init__(self) -> None:
        """Check every field."""
        if not is_real(self.value) or not 0 < self.value <= 4:
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
        if self.n is not None and not is_int(self.n, 1):
            raise ReconstructionError(f"Baseline n {self.n!r}: expected a number of vectors.")
        if self.norm is not None and not (is_real(self.norm) and self.norm > 0):
            raise ReconstructionError(f"Baseline norm {self.norm!r}: expected a number above 0.")

    @staticmethod
    def from_vectors(
        vectors: Float[Tensor, "*shape d_model"] | Iterable[Float[Tensor, "*shape d_model"]],
        *,
        name: str,
        definition: Definition = "variance",
    ) -> Baseline:
        """Measure a baseline on a tensor or on a stream of batches.

        Args:
            vectors: Raw residuals, or an iterable of batches of them. A generator is read once,
                batch by batch.
            name: The name of the data set.
            definition: Which of the two denominators to measure.

        Raises:
            ReconstructionError: There are fewer than two vectors, one of them is unusable, or all
                have the same direction.
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
                f"A baseline needs at least two vectors, got {count}. Pass thousands, from texts "
                "like those that you will score."
            )
        length = (total / count).norm().item() / math.sqrt(len(total))
        value = 1 - length**2 if definition == "variance" else 2 * (1 - length)
        if value < _ROUNDING:
            raise ReconstructionError(
                f"All {count} vectors have the same direction, so no FVE can be measured against "
                "them."
            )
        return Baseline(value, name, count, definition, norms / count)

    @staticmethod
    def published(name: str) -> Baseline:
        """Return the baseline that was published with an NLA checkpoint.

        Args:
            name: A key of `PUBLISHED`, the id of the target model.

        Raises:
            ReconstructionError: There is no published baseline for this model.
        """
        if name not in PUBLISHED:
            raise ReconstructionError(
                f"No published baseline for {name!r}, only for {', '.join(PUBLISHED)}. Measure "
                "yours with Baseline.from_vectors(vectors, name=...)."
            )
        return PUBLISHED[name]

    def fve(self, mse: _MSE) -> _MSE:
        """Return the fraction of variance explained at a mean squared error."""
        return 1 - mse / self.value

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain data, without those that are ``None``."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def in_words(self, *, digits: int = 4, short: bool = False) -> str:
        """Return the text that follows an FVE in parentheses.

        Args:
            digits: The number of digits of the value.
            short: Leave out the data set's name, if the number of vectors is known.

        >>> Baseline(0.5, "two axes", n=2).in_words(digits=2)
        'denominator 0.50: the variance of 2 vectors: two axes'
        """
        named = "" if short and self.n is not None else f": {self.name}"
        return f"denominator {self.value:.{digits}f}: the {self._measure}{named}"

    @property
    def _measure(self) -> str:
        of = "" if self.n is None else f" of {self.n:,} vectors"
        return f"{_LABELS[self.definition]}{of}"

    def __str__(self) -> str:
        return f"{self.value:z.4f}, the {self._measure}: {self.name}"


def check_baseline(given: object) -> Baseline | None:
    """Check that `given` is a `Baseline` or ``None``, and return it.

    Raises:
        ReconstructionError: It is neither.
    """
    if given is None or isinstance(given, Baseline):
        return given
    raise ReconstructionError(
        f"baseline={shown(given)}: expected a Baseline, such as Baseline.from_vectors(vectors, "
        "name='what they are')."
    )


def _batches(vectors: object) -> Iterable[object]:
    is_stream = isinstance(vectors, Iterable) and not isinstance(vectors, Tensor)
    return cast("Iterable[object]", vectors) if is_stream else [vectors]


def _rows(batch: object, before: int) -> Tensor:
    if not isinstance(batch, Tensor) or not _has_rows(batch):
        got = f"{batch.dtype}" if isinstance(batch, Tensor) else type(batch).__name__
        if isinstance(batch, Tensor) and (batch.is_meta or batch.layout is not torch.strided):
            got += f" ({batch.layout}, on {batch.device})"
        raise ReconstructionError(
            f"Expected floating-point vectors [..., d_model] or batches of them, got {got}."
        )
    rows = batch.detach().reshape(-1, batch.shape[-1])
    bad = unusable(rows)
    if bad:
        row, why = next(iter(bad.items()))
        raise ReconstructionError(
            f"Vector {before + row} {why} ({len(bad)} of {len(rows)} vectors are unusable). Leave "
            "them out: vectors[vectors.norm(dim=-1) > 0]."
        )
    return rows


def _has_rows(tensor: Tensor) -> bool:
    dense = tensor.layout is torch.strided and not tensor.is_meta
    return dense and tensor.is_floating_point() and tensor.ndim > 0 and tensor.shape[-1] > 0


def _paper(model: str, layer: int, value: float) -> Baseline:
    return Baseline(value, f"{model}, layer {layer}, as published with its NLA")


PUBLISHED: dict[str, Baseline] = {
    "Qwen/Qwen2.5-7B-Instruct": _paper("Qwen2.5-7B-Instruct", 20, 0.7335),
    "google/gemma-3-12b-it": _paper("Gemma-3-12B", 32, 0.0302),
    "google/gemma-3-27b-it": _paper("Gemma-3-27B", 41, 0.0579),
    "meta-llama/Llama-3.3-70B-Instruct": _paper("Llama-3.3-70B", 53, 0.9169),
}
"""The baselines of the NLA paper's checkpoints, by the id of the target model."""
