"""Store a sweep in one parquet file: a row per run and explained position, vectors included.

The runs without an intervention are rows too (``run`` is ``clean`` or ``corrupt``), so any reader
of parquet has everything; the call that made the sweep is JSON in the file's metadata, under
``nnsight_nla.sweep``. Cells that were not run yet are listed there, so a partial sweep can go on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.numeric import is_int, is_real
from ..errors import ExperimentError, shown
from ..models.fingerprint import fingerprint_model
from ..storage.atomic import atomic_file
from .records import NOT_EXPLAINED, Cell, Header, Outcome, Said, Texts, effect

if TYPE_CHECKING:
    from ..explanation.protocols import Explains

FORMAT, VERSION = "nnsight_nla.sweep", 1
_PLACE = ("site", "layer", "head", "position", "dose")


def write(
    path: Path,
    header: Header,
    cells: Sequence[Cell],
    runs: Mapping[str, Outcome],
    outcomes: Mapping[Cell, Outcome],
    texts: Texts,
    identity: Mapping[str, str],
) -> Path:
    """Store a sweep; the file is complete or not there.

    Raises:
        ExperimentError: The file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = list(_records(header, cells, runs, outcomes, texts))
    table = pa.Table.from_pylist(rows, schema=_schema())
    about = {
        "version": VERSION,
        "header": asdict(header),
        "cells": [asdict(cell) for cell in cells],
        "identity": dict(identity),
    }
    named = {FORMAT.encode(): json.dumps(about, ensure_ascii=False, allow_nan=False).encode()}
    with atomic_file(path, error=ExperimentError) as file:
        pq.write_table(table.replace_schema_metadata(named), file)
    return path


def read(
    path: Path,
) -> tuple[
    Header, list[Cell], dict[str, Outcome], dict[Cell, Outcome], Texts, dict[str, str]
]:  # fmt: skip
    """Read what `write` stored.

    Raises:
        ExperimentError: The file does not hold a sweep, or one of a later version.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ExperimentError(f"{path} is not a parquet file ({error}).") from error
    metadata = (table.schema.metadata or {}).get(FORMAT.encode())
    if metadata is None:
        raise ExperimentError(f"{path}: a parquet file, but not one that sweep.to_parquet() wrote.")
    try:
        about: dict[str, Any] = json.loads(metadata)
        version = about["version"]
        if is_int(version) and version > VERSION:
            raise ExperimentError(
                f"{path}: a sweep of format {version}, this package reads up to {VERSION}. "
                "Use a later nnsight_nla."
            )
        columns = _schema()
        return _sweep(about, table.select(columns.names).cast(columns))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ExperimentError(
            f"{path}: not as sweep.to_parquet() writes it ({str(error)[:100]})."
        ) from error


def _sweep(
    about: dict[str, Any], table: Any
) -> tuple[Header, list[Cell], dict[str, Outcome], dict[Cell, Outcome], Texts, dict[str, Any]]:
    """Read the description and the rows of a file, which somebody else may have written."""
    given: dict[str, Any] = about["header"]
    given["tokens"] = {name: tuple(tokens) for name, tokens in given["tokens"].items()}
    given["positions"] = tuple(given["positions"])
    header = Header(**given)
    cells = [Cell(**each) for each in about["cells"]]
    _check_types(header, cells)
    texts = Texts([], None)
    runs: dict[str, Outcome] = {}
    outcomes: dict[Cell, Outcome] = {}
    residuals: dict[str | Cell, dict[int, Tensor]] = {}
    for row in table.to_pylist():
        key = row["run"] if row["cell"] is None else cells[row["cell"]]
        vectors = residuals.setdefault(key, {})
        outcome = Outcome(row["metric"], row["answer"], vectors)
        if isinstance(key, Cell):
            outcomes[key] = outcome
        else:
            runs[key] = outcome
        if row["vector"] is not None:
            vector = torch.tensor(row["vector"], dtype=torch.float32, device="cpu")
            vectors[row["explained_at"]] = vector
            texts.learn(vector, Said(row["text"], row["error"], tuple(row["warnings"])))
    if header.baseline not in runs:
        raise LookupError(f"it has no run {header.baseline!r}")
    # Earlier versions stored no identity.
    return header, cells, runs, outcomes, texts, about.get("identity", {})


def identify_verbalizer(nla: Explains | None) -> dict[str, str]:
    """Return what the texts of a vector depend on: a hash, and the prompt's date if it has one."""
    model = getattr(nla, "av", None)
    if nla is None or model is None:
        return {}
    spec = nla.spec or {}
    weights = fingerprint_model(model, spec.get("av"), spec.get("peft"))["weights"]
    settings: tuple[object, ...] = (
        vars(nla.checkpoint.injection),
        nla.prompt.hash,
        vars(nla.sampling),
    )
    if nla.question is not None:  # The hash of the prompt covers the question.
        settings = (*settings, nla.question["choices"])
    found = hashlib.blake2b(repr((weights, settings)).encode(), digest_size=8).hexdigest()
    date = nla.prompt.date
    return {"verbalizer": found, **({} if date is None else {"date": date})}


def _check_types(header: Header, cells: Sequence[Cell]) -> None:
    """Check the fields that JSON holds, since every view of a sweep relies on their types.

    Raises:
        TypeError: A field has another type.
    """
    for name in ("experiment", "target", "metric"):
        _check(name, getattr(header, name), isinstance(getattr(header, name), str))
    _check("k", header.k, is_int(header.k, 0))
    _check("own", header.own, isinstance(header.own, bool))
    _check("positions", header.positions, all(map(is_int, header.positions)))
    words = [word for each in header.tokens.values() for word in each]
    _check("tokens", words, all(isinstance(word, str) for word in words))
    _check("settings", header.settings, isinstance(header.settings, dict))
    for cell in cells:
        for name in ("site", "kind"):
            _check(name, getattr(cell, name), isinstance(getattr(cell, name), str))
        _check("layer", cell.layer, is_int(cell.layer, 0))
        for name in ("head", "position", "source"):
            value = getattr(cell, name)
            _check(name, value, value is None or is_int(value, 0))
        _check("dose", cell.dose, cell.dose is None or is_real(cell.dose))


def _check(name: str, value: object, good: bool) -> None:
    if not good:
        raise TypeError(f"its {name} is {shown(value)}")


def _records(
    header: Header,
    cells: Sequence[Cell],
    runs: Mapping[str, Outcome],
    outcomes: Mapping[Cell, Outcome],
    texts: Texts,
) -> Iterator[dict[str, Any]]:
    numbers = {cell: number for number, cell in enumerate(cells)}
    named = [(name, None, run) for name, run in runs.items()]
    done = [(cell.kind, cell, outcome) for cell, outcome in outcomes.items()]
    for name, cell, outcome in [*named, *done]:
        base: dict[str, Any] = {
            "run": name,
            "cell": None if cell is None else numbers[cell],
            **{column: getattr(cell, column, None) for column in _PLACE},
            "metric": outcome.metric,
            "effect": effect(outcome.metric, header, runs),
            "answer": outcome.answer,
        }
        if not outcome.residuals:
            yield {**base, "warnings": []}
        for at, vector in outcome.residuals.items():
            said = texts.of(vector)
            yield {
                **base,
                "explained_at": at,
                "text": said.text,
                # A reader with an NLA explains it after all.
                "error": None if said is NOT_EXPLAINED else said.error,
                "warnings": list(said.warnings),
                "vector": vector.tolist(),
            }


def _schema() -> Any:
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
