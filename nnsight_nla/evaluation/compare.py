"""The causal difference: what an intervention did to an explanation, in words and in numbers.

A pair of explanations, one before and one after, becomes one row: both texts, which words went and
which came (a word-level diff and nothing more: it does not know that two words mean the same), the
cosine between the two vectors, and how far apart the two *texts* are when the reconstructor reads
them::

    nla.compare(before, after)            # two handles of one shape
    nla.compare(before, after).added

>>> difference("About Rome, in Italy.", "About Paris, in France.").removed
('Rome', 'Italy')
>>> difference("About Rome.", "About Rome.").change
0.0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor

from ..core.similarity import cosine as _cosine
from ..errors import NLAError, VerbalizationError
from ..explanation.handle import Explanation
from ..view.escaping import readable
from ..view.table import table

if TYPE_CHECKING:
    import pandas as pd

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_LONGEST = 4000
_MARKS = {
    "same": "{}",
    "removed": '<del style="background:#f8514933">{}</del>',
    "added": '<ins style="background:#3fb95033;text-decoration:none">{}</ins>',
}

Span = tuple[Literal["same", "removed", "added"], str]
"""A run of words, and what became of it."""


@dataclass(frozen=True)
class Difference:
    """One explanation before and one after."""

    before: str | None
    """The text before; ``None`` where there is none."""
    after: str | None
    """The text after."""
    removed: tuple[str, ...]
    """The runs of words that went."""
    added: tuple[str, ...]
    """The runs of words that came."""
    change: float | None
    """The share of words that differ, 0 to 1 (1 − `difflib`'s ratio, over words)."""
    cosine: float | None
    """Between the two vectors."""
    text_distance: float | None
    """1 − the cosine between the reconstructor's vectors of the two texts; ``None`` without one."""
    effect: float | None
    """The effect on the output, where a `Sweep` measured one."""
    error: str | None
    """Why something is missing."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The diff in reading order; what was removed stands before what was added."""
        return _spans(self.before or "", self.after or "")

    def to_html(self) -> str:
        """The diff as HTML: what went is struck, what came is marked, everything is escaped."""
        if self.before is None or self.after is None:
            return f"<em>{escape(self.error or 'no text')}</em>"
        return " ".join(
            _MARKS[kind].format(escape(readable(text, _LONGEST)).replace("\n", "<br>"))
            for kind, text in self.spans
        )

    _repr_html_ = to_html


def difference(
    before: str | None,
    after: str | None,
    *,
    cosine: float | None = None,
    text_distance: float | None = None,
    effect: float | None = None,
    error: str | None = None,
) -> Difference:
    """Compare two texts, word by word; what is known of their vectors is carried along.

    Args:
        before: The text before; ``None`` where there is none.
        after: The text after.
        cosine: Between the two vectors.
        text_distance: Between the two texts.
        effect: On the output.
        error: Why something is missing.
    """
    if before is None or after is None:
        return Difference(before, after, (), (), None, cosine, text_distance, effect, error)
    spans = _spans(before, after)
    words = [_WORDS.findall(text) for text in (before, after)]
    return Difference(
        before,
        after,
        tuple(text for kind, text in spans if kind == "removed"),
        tuple(text for kind, text in spans if kind == "added"),
        1 - SequenceMatcher(None, *words, autojunk=False).ratio(),
        cosine,
        text_distance,
        effect,
        error,
    )


def _spans(before: str, after: str) -> tuple[Span, ...]:
    """The word-level diff of two texts, each span as it stands in its text."""
    a, b = list(_WORDS.finditer(before)), list(_WORDS.finditer(after))
    words = ([each.group() for each in a], [each.group() for each in b])
    found: list[Span] = []
    for what, start, stop, first, last in SequenceMatcher(
        None, *words, autojunk=False
    ).get_opcodes():
        if what == "equal":
            found.append(("same", before[a[start].start() : a[stop - 1].end()]))
            continue
        if stop > start:
            found.append(("removed", before[a[start].start() : a[stop - 1].end()]))
        if last > first:
            found.append(("added", after[b[first].start() : b[last - 1].end()]))
    return tuple(found)


def text_distances(
    pairs: Sequence[tuple[str | None, str | None]],
    reconstruct: Callable[[list[str]], Tensor] | None,
) -> list[tuple[float | None, str | None]]:
    """1 − the cosine between the reconstructions of the two texts of each pair, and what is wrong.

    Args:
        pairs: Texts before and after.
        reconstruct: Texts to vectors, ``[n, d_model]``; ``None`` where there is no reconstructor.
    """
    if reconstruct is None:
        return [(None, None)] * len(pairs)
    whole = [(a, b) for a, b in pairs if a is not None and b is not None]
    vectors, bad = _vectors(
        list(dict.fromkeys(each for pair in whole for each in pair)), reconstruct
    )
    found: list[tuple[float | None, str | None]] = []
    for before, after in pairs:
        a, b = vectors.get(before), vectors.get(after)
        if before is None or after is None:
            found.append((None, None))
        elif a is None or b is None:
            found.append((None, f"no distance between the texts: {bad.get(before) or bad[after]}"))
        else:
            same = before == after
            found.append((0.0 if same else max(0.0, 1 - float(_cosine(a, b))), None))
    return found


def _vectors(
    texts: list[str], reconstruct: Callable[[list[str]], Tensor]
) -> tuple[dict[str | None, Tensor], dict[str | None, str]]:
    """Each text's vector, and the reasons of those that have none."""
    if not texts:
        return {}, {}
    try:
        return dict(zip(texts, reconstruct(texts), strict=True)), {}
    except NLAError as error:
        if len(texts) == 1:
            return {}, {texts[0]: str(error)}
    # One of them is at fault; the others keep their distance.
    vectors: dict[str | None, Tensor] = {}
    bad: dict[str | None, str] = {}
    for text in texts:
        one, why = _vectors([text], reconstruct)
        vectors.update(one)
        bad.update(why)
    return vectors, bad


class Comparison:
    """The differences between two explanations, in their shape.

    Every value of `Difference` (``.added``, ``.cosine``, ...) is an attribute here too: nested
    lists of the handles' shape, one value for a scalar handle.
    """

    def __init__(self, rows: Sequence[Difference], shape: tuple[int, ...]) -> None:
        """Made by ``nla.compare``, not by hand."""
        self.rows = tuple(rows)
        self.shape = shape

    def __getattr__(self, name: str) -> Any:
        if name not in Difference.__dataclass_fields__:
            raise AttributeError(name)
        values = [getattr(row, name) for row in self.rows]

        def build(rows: np.ndarray) -> Any:
            return values[int(rows)] if rows.ndim == 0 else [build(part) for part in rows]

        return build(np.arange(len(values)).reshape(self.shape))

    def __len__(self) -> int:
        return len(self.rows)

    def to_pandas(self) -> pd.DataFrame:
        """A row per pair."""
        import pandas as pd

        index = [list(map(int, index)) for index in np.ndindex(*self.shape)]
        records = [{"index": at, **asdict(row)} for at, row in zip(index, self.rows, strict=True)]
        return pd.DataFrame(records).astype(
            dict.fromkeys(("change", "cosine", "text_distance", "effect"), "Float64")
        )

    def __repr__(self) -> str:
        return f"<Comparison shape={self.shape}>"

    def _repr_html_(self) -> str:
        rows = [
            [", ".join(map(str, at)), row.to_html()]
            + [_number(getattr(row, name)) for name in _SHOWN]
            for at, row in zip(np.ndindex(*self.shape), self.rows, strict=True)
        ]
        return table(("index", "difference", *_SHOWN), rows)


_SHOWN = ("change", "cosine", "text_distance")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def compare(
    before: Any, after: Any, reconstruct: Callable[[list[str]], Tensor] | None
) -> Comparison:
    """What changed between two explanations.

    Args:
        before: A handle.
        after: A handle of the same shape; or one of the two is scalar and stands for all.
        reconstruct: Texts to vectors; ``None`` where there is no reconstructor.

    Raises:
        VerbalizationError: One of them is no handle, or their shapes do not go together.
    """
    for name, each in (("before", before), ("after", after)):
        if not isinstance(each, Explanation):
            raise VerbalizationError(
                f"compare({name}={str(each)[:40]!r}): expected what nla.explain() returned. For "
                "texts: nnsight_nla.evaluation.compare.difference(before, after)."
            )
    shape = before.shape or after.shape
    if before.shape != after.shape and () not in (before.shape, after.shape):
        raise VerbalizationError(
            f"before has shape {before.shape} and after {after.shape}; give two of one shape, or "
            "one scalar handle for all."
        )
    count = int(np.prod(shape, dtype=int))
    sides = [texts(each) * (1 if each.shape else count) for each in (before, after)]
    apart = text_distances([(a[0], b[0]) for a, b in zip(*sides, strict=True)], reconstruct)
    angles = _cosine(*(_flat(each).expand(count, -1) for each in (before, after))).tolist()
    rows: list[Difference] = []
    for a, b, angle, (distance, unmeasured) in zip(*sides, angles, apart, strict=True):
        wrong = [
            f"{name}: this vector {why}" for name, (_, why) in (("before", a), ("after", b)) if why
        ]
        rows.append(
            difference(
                a[0],
                b[0],
                cosine=None if wrong else min(1.0, angle),
                text_distance=distance,
                error="; ".join([*wrong, *filter(None, [unmeasured])]) or None,
            )
        )
    return Comparison(rows, shape)


def texts(handle: Explanation) -> list[tuple[str | None, str | None]]:
    """Each row's text (sample 0), or ``None`` and why it has none, in one flat list.

    Raises:
        VerbalizationError: Verbalizing failed; what had settled is kept.
    """
    errors = handle.errors
    every = list(np.ndindex(*handle.shape))
    fine = [index for index in every if index not in errors]
    if not handle.shape:
        said = dict(zip(fine, [handle.text], strict=True)) if fine else {}
    else:
        columns = tuple(map(list, zip(*fine, strict=True)))
        said = dict(zip(fine, handle[columns].text, strict=True)) if fine else {}
    return [(said.get(index), errors.get(index)) for index in every]


def _flat(handle: Explanation) -> Tensor:
    return handle.vectors.float().cpu().reshape(-1, handle.vectors.shape[-1])
