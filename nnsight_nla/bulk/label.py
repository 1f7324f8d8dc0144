"""Explanations to train on, for extracted rows: `label`.

A label comes from your own function, given a row as a mapping (its context, token, position and
vector), or ready-made from another file. The function may call an API; then several calls run at a
time, and what is finished survives an interruption::

    def ask(row):
        return client.complete(PROMPT.format(text=row["detokenized_text_truncated"]))

    label("rows.parquet", "labelled.parquet", by=ask, workers=8)

The output has the rows with their ``api_explanation``, as the published pipeline names it, and the
sidecar of the input. A row for which the function returns ``None`` goes to ``STEM.errors.parquet``;
one for which it raises ends the run, and the same call goes on there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..checkpoint.sidecar import DATASET_SUFFIX
from ..errors import NLAError
from .extract import beside
from .fingerprint import whole_file
from .manifest import VERSION
from .pipeline import Job, Report, work
from .sources import VECTOR, Item, Source

Labeller = Callable[[Mapping[str, Any]], str | None]

LABEL = "api_explanation"
"""The column that the published pipeline keeps explanations in."""
KEYS = ("doc_id", "n_raw_tokens")
"""What tells a row from all others."""
_READY = (LABEL, "response", "text")
_CHUNK = 64


def label(
    source: str | Path,
    output: str | Path,
    *,
    by: Labeller | str | Path,
    workers: int = 1,
    chunk: int = _CHUNK,
    strict: bool = False,
    progress: bool = True,
) -> Report:
    """Give every row an explanation, and go on where an earlier run stopped.

    Args:
        source: What `extract` wrote, or any Parquet with ``activation_vector``.
        output: A Parquet file.
        by: A function of a row, or a Parquet file with ready-made ones (``api_explanation``,
            ``response`` or ``text``), whose rows are found by ``doc_id`` and ``n_raw_tokens``.
        workers: How many calls of the function run at a time.
        chunk: Rows per chunk: what at most is asked twice after an interruption.
        strict: End at the first row without a label.
        progress: Show a bar, where standard error is a terminal.

    Raises:
        NLAError: The files do not fit, the function raised (its error is the cause), or the output
            was begun with other settings; what is finished is kept.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    rows = _rows_of(source)
    made_by = whole_file(Path(by)) if isinstance(by, str | Path) else _name(by)
    ask = _ready_made(Path(by)) if isinstance(by, str | Path) else by
    held = pq.read_schema(source)
    columns = pa.schema(
        [field for field in held if field.name not in (LABEL, "error")]
        + [pa.field(LABEL, pa.string()), pa.field("error", pa.string())]
    )
    manifest = {
        "made_by": "nnsight-nla label",
        "version": VERSION,
        "shard": None,
        "input": rows.identity,
        "labels": made_by,
        "chunk": chunk,
    }

    def finish(items: list[Item]) -> pa.Table:
        given = [item.value for item in items]
        with ThreadPoolExecutor(workers) as pool:
            labels = list(pool.map(lambda pair: _asked(ask, *pair), zip(items, given, strict=True)))
        errors = [None if each else "it has no label" for each in labels]
        arrays = [
            pa.array([row[field.name] for row in given], field.type)
            for field in columns
            if field.name not in (LABEL, "error")
        ]
        arrays += [pa.array(labels, pa.string()), pa.array(errors, pa.string())]
        return pa.Table.from_arrays(arrays, schema=columns)

    job = Job(
        "labelling",
        rows,
        chunk,
        manifest,
        columns,
        {**_sidecar(source), "bulk": manifest},
        lambda items: items,
        finish,
        strict=strict,
        apart=beside(output, "errors"),
    )
    return work(job, output, progress=progress)


def _asked(ask: Labeller, item: Item, row: Mapping[str, Any]) -> str | None:
    try:
        found = ask(row)
    except NLAError:
        raise
    except Exception as error:
        raise NLAError(
            f"Labelling row {item.row} ({item.doc_id!r}) stopped with {type(error).__name__}: "
            f"{error}. What is finished is kept; the same call goes on there."
        ) from error
    if not isinstance(found, str | None):
        raise NLAError(
            f"The label of row {item.row} is a {type(found).__name__}, expected a string, or None "
            "to leave the row out."
        )
    return found.strip() or None if found is not None else None


def _rows_of(path: Path) -> Source:
    """All columns of a Parquet file, row by row."""
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error
    names = file.schema_arrow.names
    if VECTOR not in names:
        raise NLAError(f"{path} has no column {VECTOR!r}; it has {', '.join(names)}.")

    def raw(start: int) -> Any:
        import itertools

        opened = pq.ParquetFile(path)
        rows = (row for batch in opened.iter_batches(256) for row in zip(*batch, strict=True))
        return itertools.islice(rows, start, None)

    def item(number: int, cells: tuple[Any, ...]) -> Item:
        row = {
            name: cell.values.to_numpy(zero_copy_only=False)
            if name == VECTOR and cell.is_valid
            else cell.as_py()
            for name, cell in zip(names, cells, strict=True)
        }
        return Item(number, str(row.get("doc_id", number)), row)

    return Source("vectors", whole_file(path), file.metadata.num_rows, raw, item)


def _ready_made(path: Path) -> Labeller:
    """Labels from another file, by document and position."""
    try:
        held = pq.ParquetFile(path).schema_arrow.names
    except (OSError, pa.ArrowInvalid) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error
    column = next((name for name in _READY if name in held), None)
    if column is None or not set(KEYS) <= set(held):
        raise NLAError(
            f"{path} has the columns {', '.join(held)}; labels need {' and '.join(KEYS)}, and one "
            f"of {', '.join(_READY)}."
        )
    table = pq.read_table(path, columns=[*KEYS, column])
    keys = zip(*(table[name].to_pylist() for name in KEYS), strict=True)
    labels = dict(zip(keys, table[column].to_pylist(), strict=True))
    return lambda row: _bare(labels.get(tuple(row.get(name) for name in KEYS)))


def _bare(text: str | None) -> str | None:
    """An explanation without its tags, as the column holds it."""
    from ..checkpoint.reply import OPEN, extract

    return extract(text)[0] if text and OPEN in text else text


def _sidecar(source: Path) -> dict[str, Any]:
    beside = source.with_name(source.name + DATASET_SUFFIX)
    if not beside.is_file():
        raise NLAError(
            f"{source} has no sidecar {beside.name}, which says of what model and layer its rows "
            "are. Use the one that it was published with."
        )
    return yaml.safe_load(beside.read_text("utf-8"))


def _name(by: Any) -> str:
    return f"{getattr(by, '__module__', '')}:{getattr(by, '__qualname__', type(by).__name__)}"
