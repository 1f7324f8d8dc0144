"""Read the rows of Parquet files, and what the files say about their vectors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..checkpoint.origin import COLUMNS, Origin
from ..errors import NLAError
from ..models.fingerprint import Unchanged, fingerprint_file
from .items import IDS, VECTOR, Columns, Item, Kind, Source, row_origin
from .vector_columns import holds_vectors, vector_of


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        NLAError: It is missing, or is not Parquet.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error


def open_rows(path: Path, columns: Columns) -> Source:
    """Open a Parquet file with a column of texts or of vectors."""
    identity = fingerprint_file(path)
    file = open_parquet(path)
    schema = file.schema_arrow
    kind, column = columns.choose(path, {each.name: _arrow_kind(each.type) for each in schema})
    others = ("position", "n_raw_tokens", "token", "context", "detokenized_text_truncated")
    wanted = {column, columns.doc_id, columns.question, *IDS}
    origin, mixed = Origin(), tuple[str, ...]()
    if kind == "vectors":
        origin, mixed = parquet_origin(path, column)
        wanted |= {*others, *mixed}
    kept = [name for name in schema.names if name in wanted]

    def item(row: int, record: dict[str, Any]) -> Item:
        made = columns.item(kind, column, row, record)
        return replace(made, origin=row_origin(record, path.name)) if mixed else made

    raw = partial(parquet_rows, path, kept, column if kind == "vectors" else None)
    rows, check = file.metadata.num_rows, Unchanged(path, identity)
    return Source(kind, columns.named(identity, column), rows, raw, item, origin, check)


def parquet_rows(
    path: Path, columns: list[str] | None, vector: str | None, start: int
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a Parquet file from number `start` on; a vector comes as an array.

    A value that cannot be read, such as a string that is no UTF-8, is the exception that says so.
    """
    file = open_parquet(path)
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
    try:
        for row in itertools.islice(rows, start - before, None):
            yield {name: _value(cell, vector=name == vector) for name, cell in row}
    except (pa.ArrowException, OSError) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error


def parquet_origin(path: Path, vectors: str = VECTOR) -> tuple[Origin, tuple[str, ...]]:
    """Return what a Parquet file says about its vectors, and the columns whose rows differ.

    Args:
        path: The file.
        vectors: The column that holds the vectors.

    Raises:
        CheckpointError: Its sidecar, its metadata and its columns contradict each other.
    """
    file = open_parquet(path)
    held = {
        key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
        for key, value in (file.metadata.metadata or {}).items()
    }
    # A column of another type than a claim's, such as a list, is none.
    names = [
        each.name
        for each in file.schema_arrow
        if each.name in COLUMNS and not pa.types.is_nested(each.type)
    ]
    table = file.read(columns=names) if names else pa.table({})
    values = {name: table[name].unique().drop_null().to_pylist() for name in names}
    claimed = Origin.from_columns(values, path.name)
    origin = Origin.next_to(path, vectors).joined(Origin.from_metadata(held, path.name), claimed)
    return origin, tuple(name for name in names if len(values[name]) > 1)


def _value(cell: Any, *, vector: bool) -> Any:
    try:
        return vector_of(cell) if vector else cell.as_py()
    except (ValueError, OverflowError, pa.ArrowException) as error:
        return error


def _arrow_kind(kind: pa.DataType) -> Kind:
    if holds_vectors(kind):
        return "vectors"
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return "texts" if is_text or pa.types.is_string_view(kind) else "other"
