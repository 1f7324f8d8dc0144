"""Read and write the parquet file of a reading: a row per token, a column per record field.

The names of the models and the layer are JSON in the schema's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.trust import FORMER_GRADES
from ..storage.rows import Format

FORMAT = Format("nnsight_nla.reading", 2, "a reading", "nla.read(model, prompt).to_parquet(path)")
_FORMER = {"cosine": "reconstruction_cosine"}  # Version 1 of the file called it so.
_OVER = re.compile(r"(FVE \S+) over ([\d.]+)")


def write(path: Path, rows: Sequence[Mapping[str, Any]], header: Mapping[str, Any]) -> None:
    """Write rows (the fields of `TokenReading`) and a header (the other fields of `Reading`).

    Raises:
        NLAError: The disk is full, the file cannot be written, or a text is not valid Unicode.
    """
    FORMAT.write(path, FORMAT.table(path, list(map(dict, rows)), _schema()), header)


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and the header that `write` wrote.

    Raises:
        NLAError: The file does not hold a reading, or one of a later version.
    """
    import pyarrow as pa

    table, header = FORMAT.read(path)
    table = table.rename_columns([_FORMER.get(name, name) for name in table.column_names])
    if "grounded" not in table.column_names:  # Version 0.1 wrote none.
        table = table.append_column("grounded", pa.nulls(table.num_rows, pa.string()))
    rows = FORMAT.select(path, table, _schema()).to_pylist()
    for name, kind in {"target": str, "verbalizer": str, "layer": int}.items():
        if not isinstance(header.get(name), kind):
            raise FORMAT.damaged(path, f"its {name} is {repr(header.get(name))[:60]}.")
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
    if row["trust"] is not None:
        row["trust"] = _OVER.sub(r"\1 (denominator \2)", row["trust"])


def _schema() -> Any:
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    always = {"position": pa.int64(), "token": text, "part": text}
    sometimes = {
        "explanation": text, "norm": number, "reconstruction_cosine": number,
        "fve": number, "grade": text,
        "trust": text, "warnings": pa.list_(text), "error": text, "grounded": text,
    }  # fmt: skip
    columns = [pa.field(name, kind, nullable=False) for name, kind in always.items()]
    return pa.schema([*columns, *sometimes.items()])
