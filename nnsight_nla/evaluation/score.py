"""Score explanations: how much of each vector can be reconstructed from its text alone.

The reconstructor turns each text back into a vector, and the two are compared as directions. The
cosine and the direction MSE need nothing else; the FVE needs a `Baseline`, which is printed with
it. You choose how rows without an explanation count, and the score says how many there were::

    score = nla.score(thought)                      # a failed row raises
    score = nla.score(thought, failures="zero")     # ... or counts as a cosine of 0
    print(score)    # cosine 0.978, MSE 0.044, FVE 0.954 (denominator 0.9638: ...)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..core import former, similarity
from ..core.baseline import Baseline
from ..core.former import FormerKeys
from ..core.injection import unusable
from ..errors import ReconstructionError, shown
from ..explanation.arguments import check_vectors, flat_texts
from ..explanation.handle import Explanation

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

_COLUMN = {"cosine": "reconstruction_cosine"}
"""The former name of the column."""
Failures = Literal["raise", "zero", "skip", "keep"]
"""How a row whose explanation could not be extracted counts.

``raise``: raise an error that names it; ``zero``: count a cosine of 0, an MSE of 2; ``skip``: leave
it out of every mean; ``keep``: score a reply without its tags as it is, raise for others.
"""


@dataclass(frozen=True, eq=False)
class Score:
    """How well explanations reconstruct vectors."""

    cosine: Float[Tensor, "*shape"]
    """The cosine of each vector with its reconstruction; NaN if a failed row is skipped."""
    mse: Float[Tensor, "*shape"]
    """The mean squared error per entry of the normalised vectors: ``2 * (1 - cosine)``."""
    fve: Float[Tensor, "*shape"] | None
    """The fraction of variance explained, with `baseline` as denominator; ``None`` without one."""
    baseline: Baseline | None
    """The denominator of the FVE, with its name."""
    failures: Failures
    """How rows without an explanation count."""
    failed: tuple[tuple[int, ...], ...]
    """The indices of those rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The explanation's shape."""
        return tuple(self.cosine.shape)

    @property
    def mean(self) -> dict[str, float]:
        """The mean cosine, MSE and FVE (with a baseline) over the rows that were not left out.

        Raises:
            ReconstructionError: Every row was left out.
        """
        found = self._mean()
        if not found:
            raise ReconstructionError("There is no row to average: all were left out.")
        return found

    def _mean(self) -> dict[str, float]:
        counted = self.cosine.isfinite()
        if not bool(counted.any()):
            return {}
        columns = {"cosine": self.cosine, "mse": self.mse, "fve": self.fve}
        return {
            name: values[counted].mean().item()
            for name, values in columns.items()
            if values is not None
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data, with ``None`` where a row was left out."""
        mean = {_COLUMN.get(name, name): value for name, value in self._mean().items()}
        return {
            "mean": FormerKeys(mean, _COLUMN) if mean else None,
            "baseline": None if self.baseline is None else self.baseline.to_dict(),
            "failures": self.failures,
            "failed": [list(index) for index in self.failed],
            "rows": self._records(),
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per vector; a row that was left out is ``<NA>``, never NaN."""
        columns = ["index", "reconstruction_cosine", "mse", "fve", "failed", "baseline"]
        table = former.table(self._records(), _COLUMN, columns)
        for name in ("reconstruction_cosine", "mse", "fve"):
            table[name] = table[name].astype("Float64")
        return table

    def __str__(self) -> str:
        rows = self.cosine.numel()
        counted = f"{rows} row{'s' if rows != 1 else ''}"
        if self.failed:
            counted += f", {len(self.failed)} without an explanation ({_COUNTED[self.failures]})"
        if not bool(self.cosine.isfinite().any()):
            return counted
        mean = self.mean
        parts = [f"cosine {mean['cosine']:z.3f}", f"MSE {mean['mse']:z.3f}"]
        if self.baseline is not None:
            parts.append(f"FVE {mean['fve']:z.3f} ({self.baseline.in_words()})")
        return f"{', '.join(parts)}; {counted}"

    def __repr__(self) -> str:
        return f"<Score {self}>"

    def _records(self) -> list[dict[str, Any]]:
        over = None if self.baseline is None else str(self.baseline)
        failed = set(self.failed)
        fves = [None] * self.cosine.numel() if self.fve is None else self.fve.flatten().tolist()
        cosines, mses = self.cosine.flatten().tolist(), self.mse.flatten().tolist()
        return [
            FormerKeys(
                {
                    "index": list(index),
                    "reconstruction_cosine": _known(cosine),
                    "mse": _known(mse),
                    "fve": _known(fve),
                    "failed": index in failed,
                    "baseline": over,
                },
                _COLUMN,
            )
            for index, cosine, mse, fve in zip(
                np.ndindex(*self.shape), cosines, mses, fves, strict=True
            )
        ]


def pair(
    explanation: Explanation | str | Sequence[Any],
    vectors: Float[Tensor, "*shape d_model"] | None,
    d_model: int,
) -> tuple[Sequence[str | None], Float[Tensor, "*shape d_model"], dict[int, str]]:
    """Return texts with the vectors to score them against.

    Args:
        explanation: A handle, or text of `vectors`' shape.
        vectors: ``None`` for a handle's own.
        d_model: The width of a vector.

    Returns:
        The texts, flat, ``None`` where there is none; the vectors; and a map from flat row to the
        reason why its explanation failed.

    Raises:
        ReconstructionError: The shapes differ, or a vector has no direction.
        InjectionError: `vectors` is not a tensor of vectors of this width.
    """
    texts: Sequence[str | None]
    if isinstance(explanation, Explanation):
        texts, reasons = explanation.extracted()
        shape = explanation.shape
        if vectors is None:
            return texts, explanation.vectors, reasons
    elif vectors is None:
        raise ReconstructionError(
            "A text has no vector of its own to be scored against. Pass both, (text, vectors), or "
            "a handle."
        )
    else:
        texts, shape = flat_texts(explanation)
        reasons = {row: "the text is empty" for row, text in enumerate(texts) if not text.strip()}
    check_vectors(vectors, d_model)
    if tuple(vectors.shape[:-1]) != shape:
        raise ReconstructionError(
            f"The explanations have shape {shape}, the vectors {tuple(vectors.shape)} (without "
            f"d_model: {tuple(vectors.shape[:-1])}). Give one vector for each explanation."
        )
    bad = unusable(vectors.detach().reshape(-1, d_model))
    if bad:
        row, why = next(iter(bad.items()))
        raise ReconstructionError(
            f"{len(bad)} of {len(texts)} vectors have no direction to compare with: vector {row} "
            f"{why}. Leave them out."
        )
    return texts, vectors, reasons


def score(
    reconstruct: Callable[[list[str]], Float[Tensor, "rows d_model"]],
    texts: Sequence[str | None],
    vectors: Float[Tensor, "*shape d_model"],
    reasons: dict[int, str],
    *,
    baseline: Baseline | None,
    failures: Failures,
) -> Score:
    """Score texts against vectors.

    Args:
        reconstruct: Texts to vectors.
        texts: One per vector, flat; ``None`` where there is none.
        vectors: The vectors that the texts should reconstruct, raw.
        reasons: Flat row to the reason why its explanation failed.
        baseline: The denominator of the FVE.
        failures: How failed rows count.

    Raises:
        ReconstructionError: `failures` is unknown, or says that a failed row is an error.
    """
    if not isinstance(failures, str) or failures not in get_args(Failures):
        raise ReconstructionError(
            f"failures={shown(failures)}: expected one of {', '.join(get_args(Failures))}."
        )
    shape = tuple(vectors.shape[:-1])
    indices = [tuple(map(int, index)) for index in np.ndindex(*shape)]
    kept = {row for row in reasons if failures == "keep" and (texts[row] or "").strip()}
    failed = sorted(set(reasons) - kept)
    if failed and failures in ("raise", "keep"):
        row = failed[0]
        raise ReconstructionError(
            f"{len(failed)} of {len(texts)} rows have no explanation to score; row "
            f"{indices[row]}: {reasons[row]}. Say how they count: failures='zero' (a cosine "
            "of 0), 'skip' (left out) or 'keep' (a reply without its tags is scored as it is)."
        )
    good = [row for row in range(len(texts)) if row not in set(failed)]
    cosine = torch.full(
        (len(texts),), 0.0 if failures == "zero" else math.nan, dtype=torch.float32, device="cpu"
    )
    if good:
        flat = vectors.detach().reshape(-1, vectors.shape[-1]).float().cpu()[good]
        cosine[good] = similarity.cosine(reconstruct([str(texts[row]) for row in good]), flat)
    cosine = cosine.reshape(shape)
    mse = 2 * (1 - cosine)
    fve = None if baseline is None else baseline.fve(mse)
    listed = tuple(indices[row] for row in sorted(reasons))
    return Score(cosine, mse, fve, baseline, failures, listed)


_COUNTED = {
    "raise": "",
    "zero": "counted as a cosine of 0",
    "skip": "left out",
    "keep": "scored as they are",
}


def _known(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value
