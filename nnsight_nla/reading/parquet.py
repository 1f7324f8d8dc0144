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
_LATER = ("whole", "next_tokens", "next_probabilities", "against", "denominator")
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
    for name in ("grounded", *_LATER):  # Earlier files have none.
        if name not in table.column_names:
            kind = _schema().field(name).type
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    rows = FORMAT.select(path, table, _schema()).to_pylist()
    for name, kind in {"target": str, "verbalizer": str, "layer": int}.items():
        if not isinstance(header.get(name), kind):
            raise FORMAT.damaged(path, f"its {name} is {repr(header.get(name))[:60]}.")
    header["receipt"] = _facts(path, header.get("receipt") or [])
    if not isinstance(header.setdefault("code", None), str | None):
        raise FORMAT.damaged(path, f"its code is {repr(header['code'])[:60]}.")
    for row in rows:
        for name in ("warnings", "next_tokens", "next_probabilities"):
            row[name] = row[name] or []
        _read_grade(row)
    return rows, header


def _facts(path: Path, given: Any) -> tuple[tuple[str, str], ...]:
    """Return the pairs of a receipt."""
    try:
        found = tuple((name, value) for name, value in given)
    except (TypeError, ValueError):
        found = ((None, None),)
    if not all(isinstance(each, str) for pair in found for each in pair):
        raise FORMAT.damaged(path, f"its receipt is {repr(given)[:60]}.")
    return found


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
        "whole": text, "next_tokens": pa.list_(text), "next_probabilities": pa.list_(number),
        "against": text, "denominator": text,
    }  # fmt: skip
    columns = [pa.field(name, kind, nullable=False) for name, kind in always.items()]
    return pa.schema([*columns, *sometimes.items()])
