"""Read and write the parquet file of a reading: a row per token, a column per record field.

The names of the models and the layer are JSON in the schema's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.trust import FORMER_GRADES
from ..errors import NLAError, shown
from ..storage.atomic import atomic_file

FORMAT, VERSION = "nnsight_nla.reading", 1


def write(path: Path, rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
    """Write rows (the fields of `TokenReading`) and a header (the other fields of `Reading`).

    Raises:
        NLAError: The disk is full, the file cannot be written, or a text is not valid Unicode.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    note = json.dumps({"format": FORMAT, "version": VERSION, **header})
    schema = _schema().with_metadata({FORMAT: note})
    try:
        table = pa.Table.from_pylist(list(rows), schema=schema)
    except UnicodeEncodeError as error:
        raise NLAError(
            f"{path} cannot hold the text {shown(error.object)}: it has a lone surrogate. Repair "
            "it: text.encode('utf-8', 'replace').decode()."
        ) from error
    with atomic_file(path) as file:
        pq.write_table(table, file)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the header that `write` wrote.

    Raises:
        NLAError: The file does not hold a reading, or one of another version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise NLAError(f"{path} is not a parquet file: {error}") from error
    try:
        header = json.loads((table.schema.metadata or {}).get(FORMAT.encode(), b"{}"))
    except ValueError:
        header = {}
    if not isinstance(header, dict) or header.pop("format", None) != FORMAT:
        raise NLAError(
            f"{path} does not hold a reading (columns: {', '.join(table.column_names)}). Write one "
            "with nla.read(model, prompt).to_parquet(path)."
        )
    version = header.pop("version", None)
    if version != VERSION:
        raise NLAError(
            f"{path} is a reading of version {version}, this package reads version {VERSION}. "
            "Update it: pip install -U nnsight-nla."
        )
    schema = _schema()
    if "grounded" not in table.column_names:  # Version 0.1 wrote none.
        table = table.append_column("grounded", pa.nulls(table.num_rows, pa.string()))
    try:
        rows = table.select(schema.names).cast(schema).to_pylist()
    except (LookupError, TypeError, ValueError) as error:
        raise NLAError(f"{path} is not as a reading is written: {str(error)[:100]}") from error
    for name, kind in {"target": str, "verbalizer": str, "layer": int}.items():
        if not isinstance(header.get(name), kind):
            raise NLAError(
                f"{path} is not as a reading is written: its {name} is "
                f"{repr(header.get(name))[:60]}."
            )
    for row in rows:
        row["warnings"] = row["warnings"] or []
        _read_grade(row)
    return rows, header


def _read_grade(row: dict[str, Any]) -> None:
    """Read the words of version 0.1 for grades, too; other words stay as they are."""
    word, former = row["grade"], f"trust: {row['grade']}"
    row["grade"] = FORMER_GRADES.get(word, word)
    if (row["trust"] or "").startswith(former):
        row["trust"] = f"reconstruction: {row['grade']}{row['trust'].removeprefix(former)}"


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    always = {"position": pa.int64(), "token": text, "part": text}
    sometimes = {
        "explanation": text, "norm": number, "cosine": number, "fve": number, "grade": text,
        "trust": text, "warnings": pa.list_(text), "error": text, "grounded": text,
    }  # fmt: skip
    columns = [pa.field(name, kind, nullable=False) for name, kind in always.items()]
    return pa.schema([*columns, *sometimes.items()])
