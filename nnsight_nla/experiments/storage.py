"""A sweep in one parquet file: a row per run and explained position, vectors included.

The runs without an intervention are rows too (``run`` is ``clean`` or ``corrupt``), so any reader
of parquet has everything; what the sweep was made by is JSON in the file's metadata, under
``nnsight_nla.sweep``. Cells that were not run yet are listed there, so a partial sweep can go on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .errors import ExperimentError
from .reachability import Cell
from .records import Header, Outcome
from .texts import Said, Texts

if TYPE_CHECKING:
    import pyarrow as pa

    from .sweep import Sweep

FORMAT, VERSION = "nnsight_nla.sweep", 1


def write(sweep: Sweep, path: Path) -> Path:
    """Store a sweep; the file is complete or not there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(list(_records(sweep)), schema=_schema())
    about = {
        "version": VERSION,
        "header": asdict(sweep.header),
        "cells": [asdict(cell) for cell in sweep.cells],
    }
    named = {FORMAT.encode(): json.dumps(about, ensure_ascii=False, allow_nan=False).encode()}
    beside = path.with_name(f".{path.name}.partial")
    try:
        pq.write_table(table.replace_schema_metadata(named), beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def read(
    path: Path,
) -> tuple[Header, list[Cell], dict[str, Outcome], dict[Cell, Outcome], Texts]:
    """What `write` stored.

    Raises:
        ExperimentError: The file holds no sweep, or one of a later version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ExperimentError(f"{path}: no parquet file ({error}).") from error
    metadata = (table.schema.metadata or {}).get(FORMAT.encode())
    if metadata is None:
        raise ExperimentError(f"{path}: a parquet file, but not one that sweep.to_parquet() wrote.")
    about = json.loads(metadata)
    if about["version"] > VERSION:
        raise ExperimentError(
            f"{path}: a sweep of format {about['version']}, this package reads up to {VERSION}. "
            "Use a later nnsight_nla."
        )
    given = about["header"]
    given["tokens"] = {name: tuple(tokens) for name, tokens in given["tokens"].items()}
    header = Header(**{**given, "positions": tuple(given["positions"])})
    cells = [Cell(**each) for each in about["cells"]]
    texts = Texts([], None)
    runs: dict[Any, Outcome] = {}
    for row in table.to_pylist():
        key: Any = row["run"] if row["cell"] is None else cells[row["cell"]]
        if key not in runs:
            runs[key] = Outcome(row["metric"], row["answer"], {})
        if row["vector"] is not None:
            vector = torch.tensor(row["vector"], dtype=torch.float32)
            runs[key].residuals[row["explained_at"]] = vector  # type: ignore[index]
            texts.learn(vector, Said(row["text"], row["error"], tuple(row["warnings"])))
    named = {key: runs.pop(key) for key in list(runs) if isinstance(key, str)}
    return header, cells, named, runs, texts


def _records(sweep: Sweep) -> Iterator[dict[str, Any]]:
    numbers = {cell: number for number, cell in enumerate(sweep.cells)}
    named = [(name, None, run) for name, run in sweep.runs.items()]
    done = [(cell.kind, cell, outcome) for cell, outcome in sweep.outcomes.items()]
    for name, cell, outcome in [*named, *done]:
        base: dict[str, Any] = {
            "run": name,
            "cell": None if cell is None else numbers[cell],
            "site": None if cell is None else cell.site,
            "layer": None if cell is None else cell.layer,
            "head": None if cell is None else cell.head,
            "position": None if cell is None else cell.position,
            "dose": None if cell is None else cell.dose,
            "metric": outcome.metric,
            "effect": sweep.effect(outcome.metric),
            "answer": outcome.answer,
        }
        if not outcome.residuals:
            yield {**base, "warnings": []}
        for at, vector in outcome.residuals.items():
            said = sweep.texts.of(vector)
            yield {
                **base,
                "explained_at": at,
                "text": said.text,
                "error": said.error,
                "warnings": list(said.warnings),
                "vector": vector.tolist(),
            }


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("run", pa.string()),
            ("cell", pa.int64()),
            ("site", pa.string()),
            ("layer", pa.int64()),
            ("head", pa.int64()),
            ("position", pa.int64()),
            ("dose", pa.float64()),
            ("metric", pa.float64()),
            ("effect", pa.float64()),
            ("answer", pa.string()),
            ("explained_at", pa.int64()),
            ("text", pa.string()),
            ("error", pa.string()),
            ("warnings", pa.list_(pa.string())),
            ("vector", pa.list_(pa.float32())),
        ]
    )
