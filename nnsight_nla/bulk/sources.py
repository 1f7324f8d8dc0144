"""Open texts or vectors as rows in a fixed order, a chunk at a time.

A `Source` can start at any row and never holds more than a chunk. Rows are numbered across the
whole input, so machines that share an input mean the same row by the same number::

    source = open_source("corpus.jsonl")
    for number, items in source.chunks(32, wanted=lambda number: number % 2 == 0):
        ...                                  # rows 0 to 31, 64 to 95, ...

A row that cannot be used (a line that is not JSON, a document that is not a string, a vector of
another shape) is an `Item` with an error in place of its value. An input that cannot be used at all
(a missing file or column) raises an error here.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .. import _compat
from ..errors import NLAError, shown
from ..models.fingerprint import fingerprint_file

VECTOR = "activation_vector"
"""The column that holds vectors in the published data sets."""
_FILES = (".jsonl", ".ndjson", ".gz", ".parquet", ".npy", ".safetensors", ".csv", ".json", ".txt")
IDS = ("doc_id", "id", "_id")
"""Columns that may hold a row's name, in this order; without one, the name is the row's number."""


@dataclass(frozen=True)
class Item:
    """One row of the input."""

    row: int
    """Its number in the whole input, counted from 0."""
    doc_id: str
    """Its name."""
    value: Any
    """A string, or a float32 array of ``[d_model]``; ``None`` where `error` says why."""
    error: str | None = None
    """Why the row cannot be used."""
    carried: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """``position``, ``token`` and ``context``, where the input has them with its vectors."""


@dataclass(frozen=True)
class Source:
    """Rows of one kind, readable from any row on."""

    kind: Literal["texts", "vectors"]
    """What a row holds."""
    identity: dict[str, Any]
    """Identifies the input, as plain data."""
    count: int | None
    """The number of rows; ``None`` for a stream of unknown length."""
    raw: Callable[[int], Iterator[Any]]
    """Returns the stored rows from a number on."""
    item: Callable[[int, Any], Item]
    """Converts a stored row to an `Item`."""

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Item]]]:
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
            block = list(itertools.islice(stored, size))
            at += skipped + len(block)
            if not block:
                return
            if wanted(number):
                yield number, [self.item(start + place, each) for place, each in enumerate(block)]


def open_source(
    name: str | Path,
    *,
    text: str | None = None,
    doc_id: str | None = None,
    split: str | None = None,
    tensor: str | None = None,
) -> Source:
    """Open the rows of a file, a folder or a named data set.

    Args:
        name: JSON lines (also ``.gz``) or Parquet with texts; Parquet with ``activation_vector``;
            ``.safetensors`` or ``.npy`` of ``[rows, d_model]``; a Hugging Face data set, saved to
            disk or by name (``owner/name``, or ``owner/name:configuration``).
        text: The column of the texts; default: ``text``.
        doc_id: The column of the rows' names; default: ``doc_id`` or ``id``.
        split: The split of a Hugging Face data set; default: ``train``.
        tensor: The tensor of a ``.safetensors`` file that has several.

    Raises:
        NLAError: The input does not exist or has none of these forms.
    """
    if not isinstance(name, str | Path):
        raise NLAError(
            f"The input is {shown(name)}: expected the path of a file or a folder, or the name of "
            "a data set. For vectors in memory: nla.explain(vectors)."
        )
    path = Path(name).expanduser()
    kinds = path.suffixes[-2:]
    if path.is_file():
        if ".jsonl" in kinds or ".ndjson" in kinds:
            return _json_lines(path, text or "text", doc_id)
        if path.suffix == ".parquet":
            return _parquet(path, text, doc_id)
        if path.suffix == ".npy":
            return _npy(path)
        if path.suffix == ".safetensors":
            return _safetensors(path, tensor)
        raise NLAError(
            f"{path}: expected .jsonl (also .jsonl.gz), .parquet, .safetensors, .npy, or a Hugging "
            "Face data set's folder or name."
        )
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:.+)?", str(name)) and path.suffix not in _FILES
    if path.is_dir() or named:
        return _hugging_face(str(name), text, doc_id, split)
    raise NLAError(
        f"{path.absolute()}: there is no such file or folder, and {str(name)!r} is not the name of "
        "a data set (owner/name)."
    )


def _json_lines(path: Path, text: str, doc_id: str | None) -> Source:
    opened = gzip.open if path.suffix == ".gz" else open

    def raw(start: int) -> Iterator[bytes]:
        with opened(path, "rb") as file:
            yield from itertools.islice(file, start, None)

    def item(row: int, line: bytes) -> Item:
        try:
            record = json.loads(line)
        except ValueError as error:
            return Item(row, str(row), None, f"line {row + 1} is not JSON: {error}")
        if not isinstance(record, dict):
            kind = type(record).__name__
            return Item(row, str(row), None, f"line {row + 1} is a JSON {kind}, not an object")
        return _text(row, record, text, doc_id)

    first = next(raw(0), None)
    if first is None:
        raise NLAError(f"{path} is empty.")
    try:
        keys = list(json.loads(first))
    except (ValueError, TypeError):
        keys = [text]
    _check_column(path, keys, text, "text")
    _check_column(path, keys, doc_id, "doc_id")
    with opened(path, "rb") as file:
        count = sum(1 for _ in file)
    return Source("texts", fingerprint_file(path), count, raw, item)


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        NLAError: It is missing, or is not Parquet.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error


def _parquet(path: Path, text: str | None, doc_id: str | None) -> Source:
    file = open_parquet(path)
    names = file.schema_arrow.names
    vectors = text is None and VECTOR in names
    column = VECTOR if vectors else text or "text"
    if not vectors:
        _check_column(path, names, column, "text")
    _check_column(path, names, doc_id, "doc_id")
    others = ("position", "n_raw_tokens", "token", "context", "detokenized_text_truncated")
    wanted = {column, doc_id, *IDS, *(others if vectors else ())}
    kept = [name for name in names if name in wanted]

    def item(row: int, record: dict[str, Any]) -> Item:
        if not vectors:
            return _text(row, record, column, doc_id)
        return _vector(row, record[VECTOR], _name(row, record, doc_id), _carried(record))

    kind = "vectors" if vectors else "texts"
    raw = partial(parquet_rows, path, kept)
    return Source(kind, fingerprint_file(path), file.metadata.num_rows, raw, item)


def parquet_rows(path: Path, columns: list[str] | None, start: int) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file from number `start` on; a vector comes as an array."""
    file = pq.ParquetFile(path)
    first = before = 0
    counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    while first < len(counts) and before + counts[first] <= start:
        before += counts[first]
        first += 1
    if first == len(counts):
        return
    batches = file.iter_batches(256, row_groups=range(first, len(counts)), columns=columns)
    rows = (zip(batch.schema.names, row, strict=True) for batch in batches
            for row in zip(*batch.columns, strict=True))  # fmt: skip
    for row in itertools.islice(rows, start - before, None):
        yield {name: _values(cell) if name == VECTOR else cell.as_py() for name, cell in row}


def _npy(path: Path) -> Source:
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise NLAError(f"{path} cannot be read as a .npy array of numbers: {error}") from error
    _check_matrix(path, list(held.shape))
    identity = fingerprint_file(path)
    return Source("vectors", identity, len(held), lambda start: iter(held[start:]), _vector)


def _safetensors(path: Path, tensor: str | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise NLAError(f"{path} cannot be read as safetensors: {error}") from error
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    if tensor is None and len(flat) == 1:
        tensor = flat[0]
    if tensor not in shapes:
        raise NLAError(
            f"{path} holds {listed}: say which tensor holds the vectors, "
            f'open_source(..., tensor="NAME").'
        )
    rows, _ = _check_matrix(path, shapes[tensor])

    def raw(start: int) -> Iterator[Any]:
        with safe_open(path, "pt") as file:
            held = file.get_slice(tensor)
            for begin in range(start, rows, 256):
                yield from held[begin : begin + 256].float().numpy()

    identity = {**fingerprint_file(path), "tensor": tensor}
    return Source("vectors", identity, rows, raw, _vector)


def _hugging_face(name: str, text: str | None, doc_id: str | None, split: str | None) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise NLAError(
            f"{name}: Hugging Face data sets need the package datasets: pip install "
            "'nnsight-nla[datasets]'."
        ) from error
    folder = Path(name).expanduser()
    saved = folder.is_dir() and any(
        (folder / file).exists() for file in ("state.json", "dataset_dict.json")
    )
    repository, _, configuration = name.partition(":")
    try:
        if saved:
            held: Any = datasets.load_from_disk(str(folder))
            if isinstance(held, datasets.DatasetDict):
                held = held[split or "train"]
        else:
            held = datasets.load_dataset(
                str(folder) if folder.is_dir() else repository,
                configuration or None,
                split=split or "train",
                streaming=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NLAError(
            f"The data set {name!r} (split {split or 'train'!r}) could not be opened: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error
    first = held[0] if saved and len(held) else next(iter(held), None)
    if first is None:
        raise NLAError(f"The data set {name!r} is empty.")
    vectors = text is None and VECTOR in first
    if not vectors:
        _check_column(name, list(first), text or "text", "text")
    _check_column(name, list(first), doc_id, "doc_id")

    def raw(start: int) -> Iterator[dict[str, Any]]:
        if saved:
            return (held[row] for row in range(start, len(held)))
        return iter(held.skip(start))

    def item(row: int, record: dict[str, Any]) -> Item:
        if vectors:
            found = _vector(row, record[VECTOR], _name(row, record, doc_id), _carried(record))
        else:
            found = _text(row, record, text or "text", doc_id)
        return found

    identity = {"name": Path(name).name if folder.is_dir() else name, "split": split or "train"}
    # A saved folder is identified by its content, a repository by its revision.
    identity["fingerprint"] = _compat.data_set_fingerprint(held) if saved else _revision(held)
    return Source(
        "vectors" if vectors else "texts", identity, len(held) if saved else None, raw, item
    )


def _revision(held: Any) -> str:
    """Return the addresses of a streamed data set's files, which contain their revisions."""
    checksums = held.info.download_checksums or {}
    return ", ".join(sorted(map(str, checksums))) or str(held.info.version or "")


def _text(row: int, record: Mapping[str, Any], column: str, doc_id: str | None) -> Item:
    name = _name(row, record, doc_id)
    value = record.get(column)
    if not isinstance(value, str):
        kind = "missing" if column not in record else f"of type {type(value).__name__}"
        return Item(row, name, None, f"its {column!r} is {kind}, not a string")
    if not value.strip():
        return Item(row, name, None, f"its {column!r} is empty")
    return Item(row, name, value)


def _vector(
    row: int, value: Any, name: str | None = None, carried: Mapping[str, Any] | None = None
) -> Item:
    name = str(row) if name is None else name
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        array = None
    if value is None or array is None or array.ndim != 1:
        reason = "it has no vector" if value is None else "its vector is not a list of numbers"
        return Item(row, name, None, reason, carried or {})
    return Item(row, name, array, None, carried or {})


def _values(cell: Any) -> Any:
    """Return the numbers of a Parquet list without making a Python object of each."""
    values = getattr(cell, "values", None)
    return None if values is None else values.to_numpy(zero_copy_only=False)


def _name(row: int, record: Mapping[str, Any], doc_id: str | None) -> str:
    for column in (doc_id,) if doc_id else IDS:
        if record.get(column) is not None:
            return str(record[column])
    return str(row)


def _carried(record: Mapping[str, Any]) -> dict[str, Any]:
    position = record.get("position")
    if position is None and record.get("n_raw_tokens") is not None:
        position = record["n_raw_tokens"] - 1  # As published: counts this token too.
    context = record.get("context", record.get("detokenized_text_truncated"))
    return {"position": position, "token": record.get("token"), "context": context}


def _check_column(name: object, columns: list[str], wanted: str | None, argument: str) -> None:
    if wanted is not None and wanted not in columns:
        raise NLAError(
            f"{name} has no column {wanted!r}; it has {', '.join(map(repr, columns))}. Say which "
            f'one to read, open_source(..., {argument}="NAME").'
        )


def _check_matrix(path: Path, shape: list[int]) -> list[int]:
    if len(shape) != 2:
        raise NLAError(f"{path} holds an array of shape {shape}, expected [rows, d_model].")
    return shape
