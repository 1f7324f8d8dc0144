"""What is read: texts or vectors, in a fixed order, a block of rows at a time.

A `Source` opens anywhere and never holds more than a block. Row numbers are those of the whole
input, whoever reads it, so two machines that take parts of one input speak of the same rows::

    source = texts("corpus.jsonl")
    for number, items in source.chunks(32, wanted=lambda number: number % 2 == 0):
        ...                                  # rows 0 to 31, 64 to 95, ...

What cannot be used (a line that is no JSON, a document that is no string, a vector of another
shape) is an `Item` with an error in place of its value; what makes the whole input unusable (no
such file, no such column) is an error here.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import NLAError
from .fingerprint import whole_file

VECTOR = "activation_vector"
"""The column that holds vectors in the published data sets."""
_FILES = (".jsonl", ".ndjson", ".gz", ".parquet", ".npy", ".safetensors", ".csv", ".json", ".txt")
IDS = ("doc_id", "id", "_id")
"""Where a row's name is looked for, in this order; else it is the row's number."""


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
    """``position``, ``token`` and ``context``, where vectors come with them."""


@dataclass(frozen=True)
class Source:
    """Rows of one kind, opened where a reader wants to begin."""

    kind: Literal["texts", "vectors"]
    """What a row holds."""
    identity: dict[str, Any]
    """What tells this input from another one, as plain data."""
    count: int | None
    """How many rows there are; ``None`` for a stream of unknown length."""
    raw: Callable[[int], Iterator[Any]]
    """The rows from a number on, as they are stored."""
    item: Callable[[int, Any], Item]
    """One stored row as an `Item`."""

    def chunks(self, size: int, wanted: Callable[[int], bool]) -> Iterator[tuple[int, list[Item]]]:
        """Fixed ranges of `size` rows, those that are wanted, in order."""
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
    """The rows of a file, a folder or a data set's name.

    Args:
        name: JSON lines (also ``.gz``) or Parquet with texts; Parquet with ``activation_vector``;
            ``.safetensors`` or ``.npy`` of ``[rows, d_model]``; a Hugging Face data set that was
            saved to disk, or by name (``owner/name``, or ``owner/name:configuration``).
        text: The column of the texts; ``text`` unless given.
        doc_id: The column of the rows' names; ``doc_id`` or ``id`` unless given.
        split: The split of a Hugging Face data set; ``train`` unless given.
        tensor: Which tensor of a ``.safetensors`` file, where it has several.

    Raises:
        NLAError: There is no such input, or it is not one of these; says what was expected.
    """
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
        f"{path.absolute()}: there is no such file or folder, and it is no data set's name "
        "(owner/name)."
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
    _check_column(path, keys, doc_id, "id")
    with opened(path, "rb") as file:
        count = sum(1 for _ in file)
    return Source("texts", whole_file(path), count, raw, item)


def _parquet(path: Path, text: str | None, doc_id: str | None) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise NLAError(f"{path} is no Parquet file: {error}") from error
    names = file.schema_arrow.names
    groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    vectors = text is None and VECTOR in names
    column = VECTOR if vectors else text or "text"
    if not vectors:
        _check_column(path, names, column, "text")
    _check_column(path, names, doc_id, "id")
    others = ("position", "n_raw_tokens", "token", "context", "detokenized_text_truncated")
    kept = sorted({column, doc_id, *IDS, *(others if vectors else ())} & set(names), key=str)

    def raw(start: int) -> Iterator[dict[str, Any]]:
        first, before = 0, 0
        while first < len(groups) and before + groups[first] <= start:
            before += groups[first]
            first += 1
        if first == len(groups):
            return
        opened = pq.ParquetFile(path)
        batches = opened.iter_batches(256, row_groups=range(first, len(groups)), columns=kept)
        rows = (dict(zip(batch.schema.names, row, strict=True)) for batch in batches
                for row in zip(*batch.columns, strict=True))  # fmt: skip
        yield from itertools.islice(rows, start - before, None)

    def item(row: int, record: dict[str, Any]) -> Item:
        if not vectors:
            plain = {name: value.as_py() for name, value in record.items()}
            return _text(row, plain, column, doc_id)
        plain = {name: value.as_py() for name, value in record.items() if name != VECTOR}
        cell = record[VECTOR]
        return _vector(row, _values(cell), _name(row, plain, doc_id), _carried(plain))

    kind = "vectors" if vectors else "texts"
    return Source(kind, whole_file(path), file.metadata.num_rows, raw, item)


def _npy(path: Path) -> Source:
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise NLAError(f"{path} is no .npy file of numbers: {error}") from error
    _check_matrix(path, list(held.shape))
    return Source("vectors", whole_file(path), len(held), lambda start: iter(held[start:]), _vector)


def _safetensors(path: Path, tensor: str | None) -> Source:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise NLAError(f"{path} is no safetensors file: {error}") from error
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    if tensor is None and len(flat) == 1:
        tensor = flat[0]
    if tensor not in shapes:
        raise NLAError(f"{path} holds {listed}: say which one holds the vectors (--tensor NAME).")
    rows, _ = _check_matrix(path, shapes[tensor])

    def raw(start: int) -> Iterator[Any]:
        with safe_open(path, "pt") as file:
            held = file.get_slice(tensor)
            for begin in range(start, rows, 256):
                yield from held[begin : begin + 256].float().numpy()

    identity = {**whole_file(path), "tensor": tensor}
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
    _check_column(name, list(first), doc_id, "id")

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
    # A folder's fingerprint is that of its content; a repository's is the revision it came from.
    identity["fingerprint"] = held._fingerprint if saved else _revision(held)
    return Source(
        "vectors" if vectors else "texts", identity, len(held) if saved else None, raw, item
    )


def _revision(held: Any) -> str:
    """What a streamed data set was made from: the addresses of its files, with their revisions."""
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
    """A Parquet list's numbers without a Python object for each."""
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
        position = record["n_raw_tokens"] - 1  # Published: how many tokens were read, this one too.
    context = record.get("context", record.get("detokenized_text_truncated"))
    return {"position": position, "token": record.get("token"), "context": context}


def _check_column(name: object, columns: list[str], wanted: str | None, what: str) -> None:
    if wanted is not None and wanted not in columns:
        raise NLAError(
            f"{name} has no column {wanted!r}; it has {', '.join(map(repr, columns))}. Say which "
            f"one holds the {what}s (--{what}-column NAME)."
        )


def _check_matrix(path: Path, shape: list[int]) -> list[int]:
    if len(shape) != 2:
        raise NLAError(f"{path} holds an array of shape {shape}, expected [rows, d_model].")
    return shape
