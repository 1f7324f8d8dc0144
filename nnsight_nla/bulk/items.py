"""Rows of an input, and the columns that they are made from.

A row that cannot be used (a document that is not a string, a vector of another shape, a name that
cannot be written) is an `Item` with an error in place of its value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from ..checkpoint.origin import COLUMNS, Origin
from ..core.numeric import is_int, is_unicode
from ..errors import NLAError

Rows = Literal["texts", "vectors"]
"""What the rows of an input hold."""
Kind = Literal["texts", "vectors", "any", "other"]
"""What a column holds: strings, lists of numbers, something that is not known, or neither."""
VECTOR = "activation_vector"
"""The column that holds vectors in the published data sets."""
VECTORS = "activation_vectors"
"""The column that holds the vectors of a row's slots, for an oracle."""
IDS = ("doc_id", "id", "_id")
"""Columns that may hold a row's name, in this order; without one, the name is the row's number."""
_UNKNOWN = Origin()


@dataclass(frozen=True)
class Item:
    """One row of the input."""

    row: int
    """Its number in the whole input, counted from 0."""
    doc_id: str
    """Its name."""
    value: Any
    """A string, or a float32 array of ``[d_model]`` or, for an oracle, ``[slots, d_model]``;
    ``None`` where `error` says why."""
    error: str | None = None
    """Why the row cannot be used."""
    carried: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """``position``, ``token`` and ``context``, where the input has them with its vectors; and
    ``question``, where a column is named for it."""
    origin: Origin = _UNKNOWN
    """What the row says about its vector, where the rows of the input differ."""


def _nothing(*, thorough: bool = False) -> None:
    """Check nothing: the input cannot change."""


@dataclass(frozen=True)
class Source:
    """Rows of one kind, readable from any row on."""

    kind: Rows
    """What a row holds."""
    identity: dict[str, Any]
    """Identifies the input, as plain data."""
    count: int | None
    """The number of rows; ``None`` for a stream of unknown length."""
    raw: Callable[[int], Iterator[Any]]
    """Returns the stored rows from a number on."""
    item: Callable[[int, Any], Item]
    """Converts a stored row to an `Item`."""
    origin: Origin = _UNKNOWN
    """What the input says about its vectors."""
    check: Callable[..., None] = _nothing
    """Raises if the input is no longer the one that was opened; see `Unchanged`."""

    def chunks(
        self, size: int, wanted: Callable[[int], bool]
    ) -> Generator[tuple[int, list[Item]], None, None]:
        """Yield fixed ranges of `size` rows, those that are wanted, in order."""
        stored: Iterator[Any] | None = None
        at = 0
        for number in itertools.count():
            start = number * size
            if self.count is not None:
                if start >= self.count:
                    return
                if not wanted(number):
                    continue
            if stored is None:
                stored, at = self.raw(start), start
            skipped = sum(1 for _ in itertools.islice(stored, start - at))
            left = size if self.count is None else min(size, self.count - start)
            block = list(itertools.islice(stored, left))
            at += skipped + len(block)
            if self.count is not None and len(block) < left:
                self.check(thorough=True)
                raise NLAError(
                    f"{self.identity['name']} has {at:,} rows, and {self.count:,} were counted "
                    "when it was opened. It was changed while it was read, or is damaged."
                )
            if not block:
                return
            if wanted(number):
                yield number, [self._item(start + place, each) for place, each in enumerate(block)]

    def _item(self, row: int, stored: Any) -> Item:
        """Convert a stored row; whatever is wrong with it is that row's error."""
        try:
            return _storable(self.item(row, stored))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            kind = type(error).__name__
            return Item(row, str(row), None, f"it cannot be read ({kind}: {str(error)[:200]})")


@dataclass(frozen=True)
class Columns:
    """The columns that the caller named."""

    text: str | None
    vector: str | None
    doc_id: str | None
    question: str | None = None

    def choose(self, where: object, kinds: Mapping[str, Kind]) -> tuple[Rows, str]:
        """Return what the rows hold, and in which column.

        Args:
            where: The input, for messages.
            kinds: Every column, with what it could hold.

        Raises:
            NLAError: A named column is absent or holds something else, or none is named and there
                is no column of the default names.
        """
        usual = [] if self.text else [name for name in (VECTOR, VECTORS) if name in kinds]
        vectors = self.vector or next(iter(usual), None)
        kind: Rows = "vectors" if vectors else "texts"
        wanted = vectors or self.text or "text"
        held = kinds.get(wanted)
        # One row of another type is that row's error; a column of vectors holds no texts at all.
        wrong = held not in (kind, "any") and "vectors" in (held, kind)
        if held is None or wrong:
            options = {"vectors": "vector", "texts": "text"}
            fitting = [
                f"{options[each]}={name!r}" for name, each in kinds.items() if each in options
            ]
            say = f" Say which one to read: {' or '.join(fitting)}."
            raise NLAError(
                f"{where} has no {'column' if held is None else f'{kind} in column'} {wanted!r}; "
                f"it has {', '.join(map(repr, kinds))}.{say if fitting else ''}"
            )
        further = {
            "doc_id": (self.doc_id, "names the rows"),
            "question": (self.question, "holds the questions"),
        }
        for option, (name, what) in further.items():
            if name is not None and name not in kinds:
                raise NLAError(
                    f"{where} has no column {name!r}; it has {', '.join(map(repr, kinds))}. Say "
                    f"which one {what}: {option}='NAME'."
                )
        return kind, wanted

    def item(self, kind: Rows, column: str, row: int, record: Mapping[str, Any]) -> Item:
        """Convert a record to an `Item`."""
        if kind == "texts":
            made = _text(row, record, column, self.doc_id)
        else:
            name = _name(row, record, self.doc_id)
            made = vector_item(row, record.get(column), name, _carried(record))
        if self.question is None:
            return made
        return replace(made, carried={**made.carried, "question": record.get(self.question)})

    def named(self, identity: dict[str, Any], column: str) -> dict[str, Any]:
        """Add the columns that are read to an identity, unless they have the default names."""
        if column not in (VECTOR, VECTORS, "text"):
            identity = {**identity, "column": column}
        if self.question is not None:
            identity = {**identity, "question_column": self.question}
        return identity


def kind_of(value: object) -> Kind:
    """Return what a column could hold, by its first value."""
    if isinstance(value, str):
        return "texts"
    if isinstance(value, np.ndarray):
        return "vectors"
    if isinstance(value, list | tuple) and value:
        return "vectors" if isinstance(value[0], int | float) else kind_of(value[0])
    return "any" if value is None or value == [] else "other"


def _text(row: int, record: Mapping[str, Any], column: str, doc_id: str | None) -> Item:
    name = _name(row, record, doc_id)
    value = record.get(column)
    if not isinstance(value, str):
        kind = "missing" if column not in record else f"of type {type(value).__name__}"
        return Item(row, name, None, f"its {column!r} is {kind}, not a string")
    if not value.strip():
        return Item(row, name, None, f"its {column!r} is empty")
    if not is_unicode(value):
        return Item(row, name, None, f"its {column!r} has a lone surrogate, which is no character")
    return Item(row, name, value)


def vector_item(
    row: int, value: Any, name: str | None = None, carried: Mapping[str, Any] | None = None
) -> Item:
    """Return a row that should hold a vector, such as a list of numbers or an array, or several."""
    name = str(row) if name is None else name
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        array = None
    if value is None or array is None or array.ndim not in (1, 2):
        reason = "it has no vector" if value is None else "its vector is not a list of numbers"
        if value is not None and array is not None and array.ndim:
            reason = f"its vector has shape {list(array.shape)}, expected one axis"
        return Item(row, name, None, reason, carried or {})
    return Item(row, name, array, None, carried or {})


def _storable(item: Item) -> Item:
    """Return a row whose name can be written; a name that cannot is the row's error."""
    if is_unicode(item.doc_id):
        return item
    shown = item.doc_id.encode("utf-8", "backslashreplace").decode()
    reason = item.error or "its name has a lone surrogate, which is no character"
    return replace(item, doc_id=shown, value=None, error=reason)


def _name(row: int, record: Mapping[str, Any], doc_id: str | None) -> str:
    for column in (doc_id,) if doc_id else IDS:
        if record.get(column) is not None:
            return str(record[column])
    return str(row)


def row_origin(record: Mapping[str, Any], where: object) -> Origin:
    """Return what a row says about its vector."""
    return Origin.from_columns(
        {name: [record[name]] for name in COLUMNS if name in record}, str(where)
    )


def _carried(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a vector was read, as far as that can be written."""
    position, count = record.get("position"), record.get("n_raw_tokens")
    if position is None and is_int(count, 1):
        position = count - 1  # As published: counts this token too.
    token = record.get("token")
    context = record.get("context", record.get("detokenized_text_truncated"))
    return {
        "position": position if is_int(position, 0) and position < 1 << 63 else None,
        "token": token if isinstance(token, str) and is_unicode(token) else None,
        "context": context if isinstance(context, str) and is_unicode(context) else None,
    }
