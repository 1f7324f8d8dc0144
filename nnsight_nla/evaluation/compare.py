"""Compare two explanations: what an intervention changed, in words and in numbers.

A pair of explanations, one before and one after, becomes one row: both texts, the words that were
removed and added, the cosine between the two vectors, and how far apart the two *texts* are once
the reconstructor has turned them back into vectors::

    nla.compare(before, after)            # two handles of one shape
    nla.compare(before, after).added
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import Tensor

from ..core.similarity import cosine as _cosine
from ..errors import TextError, VerbalizationError
from ..explanation.handle import Explanation, check_handle, nested
from ..view.table import table
from .difference import Difference, difference

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float

    Reconstruct = Callable[[list[str]], Float[Tensor, "texts d_model"]]

_FOR_TEXTS = " For texts: nnsight_nla.evaluation.difference.difference(before, after)."
_LINES, _WIDEST = 20, 60
_SHOWN = ("change", "cosine", "text_distance")


class Comparison:
    """The differences between two explanations, in their shape.

    Every value of `Difference` (``.added``, ``.cosine``, ...) is an attribute here too: nested
    lists of the handles' shape, one value for a scalar handle.
    """

    def __init__(self, rows: Sequence[Difference], shape: tuple[int, ...]) -> None:
        """Use ``nla.compare`` to make one."""
        self.rows = tuple(rows)
        self.shape = shape

    def __getattr__(self, name: str) -> Any:
        if name not in Difference.__dataclass_fields__:
            raise AttributeError(name)
        return nested([getattr(row, name) for row in self.rows], self.shape)

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row per pair."""
        import pandas as pd

        index = [list(map(int, index)) for index in np.ndindex(*self.shape)]
        records = [{"index": at, **asdict(row)} for at, row in zip(index, self.rows, strict=True)]
        return pd.DataFrame(records).astype(dict.fromkeys((*_SHOWN, "effect"), "Float64"))

    def __repr__(self) -> str:
        if not self.shape:
            return f"<Comparison {_figures(self.rows[0])}>"
        changed = sum(1 for row in self.rows if row.change)
        texts = f"{changed} of {len(self.rows)} texts differ"
        return f"<Comparison shape={self.shape}, {texts}>"

    def __str__(self) -> str:
        lines: list[str] = []
        for at, row in zip(np.ndindex(*self.shape), self.rows, strict=True):
            if len(lines) == _LINES:
                lines.append(f"... and {len(self.rows) - _LINES} more; .to_pandas() has all")
                break
            where = f"{', '.join(map(str, at))}: " if at else ""
            lines.append(f"{where}{_figures(row)}{_words(row) if at else ''}")
        if not self.shape and self.rows[0].change:
            lines += ["", self.rows[0].to_text()]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            [", ".join(map(str, at)), row.to_html()]
            + [_number(getattr(row, name)) for name in _SHOWN]
            for at, row in zip(np.ndindex(*self.shape), self.rows, strict=True)
        ]
        return table(("index", "difference", *_SHOWN), rows)


def compare(before: object, after: object, reconstruct: Reconstruct | None) -> Comparison:
    """Compare two explanations.

    Args:
        before: A handle.
        after: A handle of the same shape; or one of the two is scalar and is used for every row.
        reconstruct: Texts to vectors; ``None`` without a reconstructor.

    Raises:
        VerbalizationError: One of them is not a handle, or their shapes differ.
    """
    handles = (
        check_handle(before, "compare(before=)", _FOR_TEXTS),
        check_handle(after, "compare(after=)", _FOR_TEXTS),
    )
    shapes = [each.shape for each in handles]
    if shapes[0] != shapes[1] and () not in shapes:
        raise VerbalizationError(
            f"before has shape {shapes[0]} and after {shapes[1]}; give two of one shape, or one "
            "scalar handle for all."
        )
    shape = shapes[0] or shapes[1]
    count = int(np.prod(shape, dtype=int))
    sides = [texts(each) * (1 if each.shape else count) for each in handles]
    distances = text_distances([(a[0], b[0]) for a, b in zip(*sides, strict=True)], reconstruct)
    cosines = _cosine(*_joined(*handles, count)).tolist()
    rows: list[Difference] = []
    for a, b, cosine, (distance, unmeasured) in zip(*sides, cosines, distances, strict=True):
        unusable = [
            f"{name}: this vector {why}" for name, (_, why) in (("before", a), ("after", b)) if why
        ]
        rows.append(
            difference(
                a[0],
                b[0],
                cosine=None if unusable else min(1.0, cosine),
                text_distance=distance,
                error="; ".join([*unusable, *filter(None, [unmeasured])]) or None,
            )
        )
    return Comparison(rows, shape)


def texts(handle: Explanation) -> list[tuple[str | None, str | None]]:
    """Return each row's text (sample 0), or ``None`` and the reason, in one flat list.

    Raises:
        VerbalizationError: Verbalizing failed; the texts made so far are kept.
    """
    errors = handle.errors
    found, _ = handle.extracted()
    return [
        (text, errors.get(index))
        for text, index in zip(found, np.ndindex(*handle.shape), strict=True)
    ]


def text_distances(
    pairs: Sequence[tuple[str | None, str | None]], reconstruct: Reconstruct | None
) -> list[tuple[float | None, str | None]]:
    """Return 1 − the cosine between the reconstructions of each pair of texts, or the reason.

    Args:
        pairs: Texts before and after.
        reconstruct: Texts to vectors; ``None`` without a reconstructor.
    """
    if reconstruct is None:
        return [(None, None)] * len(pairs)
    complete = [(a, b) for a, b in pairs if a is not None and b is not None]
    wanted = list(dict.fromkeys(text for pair in complete for text in pair))
    vectors, errors = _vectors(wanted, reconstruct)
    found: list[tuple[float | None, str | None]] = []
    for before, after in pairs:
        if before is None or after is None:
            found.append((None, None))
        elif before in errors or after in errors:
            why = errors.get(before) or errors[after]
            found.append((None, f"no distance between the texts: {why}"))
        elif before == after:
            found.append((0.0, None))
        else:
            cosine = float(_cosine(vectors[before], vectors[after]))
            found.append((max(0.0, 1 - cosine), None))
    return found


def _vectors(
    texts: list[str], reconstruct: Reconstruct
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return each text's vector, and the reasons of those that have none."""
    if not texts:
        return {}, {}
    try:
        return dict(zip(texts, reconstruct(texts), strict=True)), {}
    except TextError as error:
        if len(texts) == 1:
            return {}, {texts[0]: str(error)}
    # One text failed: reconstruct each by itself, so that the others keep their distance.
    vectors: dict[str, Tensor] = {}
    errors: dict[str, str] = {}
    for text in texts:
        one, why = _vectors([text], reconstruct)
        vectors.update(one)
        errors.update(why)
    return vectors, errors


def _flat(handle: Explanation) -> Tensor:
    """Return the vectors, ``[rows, d_model]``; an oracle's slots are joined, end to end."""
    if handle.capture.asked is not None:
        held = cast("Tensor", handle.capture.vectors)[handle.rows]
        return held.float().cpu().flatten(1)
    return handle.vectors.float().cpu().reshape(-1, handle.vectors.shape[-1])


def _joined(before: Explanation, after: Explanation, count: int) -> tuple[Tensor, Tensor]:
    """Return the vectors of both sides, ``count`` rows of equal width.

    Raises:
        VerbalizationError: They are of different numbers of slots.
    """
    sides = _flat(before), _flat(after)
    widths = [each.shape[-1] for each in sides]
    if widths[0] != widths[1]:
        raise VerbalizationError(
            f"before has vectors of {widths[0]} entries in all slots together, after of "
            f"{widths[1]}. Compare answers about equally many vectors."
        )
    return sides[0].expand(count, -1), sides[1].expand(count, -1)


def _figures(row: Difference) -> str:
    """Return the figures of one pair in a line."""
    if row.change is None:
        return row.error or "no text"
    parts = [f"{row.change:.0%} of the words differ"]
    for name, value in (("cosine", row.cosine), ("text distance", row.text_distance)):
        if value is not None:
            parts.append(f"{name} {value:z.2f}")
    return ", ".join([*parts, *filter(None, [row.error])])


def _words(row: Difference) -> str:
    """Return the words of one pair that differ, cut to what a line can show."""
    sides = (" / ".join(side) for side in (row.removed, row.added))
    removed, added = (
        text if len(text) <= _WIDEST else f"{text[:_WIDEST]}\u2026"
        for text in (" ".join(each.split()) for each in sides)
    )
    return f": {removed or '(nothing)'} \u2192 {added or '(nothing)'}" if removed or added else ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:z.3f}"
