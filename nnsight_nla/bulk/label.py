"""Label extracted rows with explanations to train on: `label`.

A label comes from your own function, which gets a row as a mapping (its context, token, position
and vector), or from another file. The function may call an API: `workers` calls run concurrently,
and finished chunks survive an interruption::

    def ask(row):
        return client.complete(PROMPT.format(text=row["detokenized_text_truncated"]))

    label("rows.parquet", "labelled.parquet", by=ask, workers=8)

The output has the rows with their ``api_explanation``, as the published pipeline names it, and the
sidecar of the input. A row for which the function returns ``None`` goes to ``STEM.errors.parquet``.
An exception in the function stops the call; call `label` again to resume. If you edited the
function in the meantime, this raises an error unless you pass ``edited="accept"``, because the
output would mix labels of two versions; its manifest then says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..checkpoint.reply import OPEN, extract
from ..core.numeric import is_int
from ..errors import NLAError, shown
from ..models.fingerprint import Unchanged, fingerprint_file
from ..storage.atomic import atomic_file
from ..storage.function_hash import fingerprint_function
from . import records
from .chunk_store import ADVICE, ChunkStore
from .finished_file import earlier_manifest, read_sidecar, sibling
from .items import VECTOR, VECTORS, Item, Source
from .manifest import VERSION, differences
from .parquet import open_parquet, parquet_origin, parquet_rows
from .pipeline import Job, Report, run_job
from .vector_columns import stored_type

Labeller = Callable[[Mapping[str, Any]], str | None]
Edited = Literal["refuse", "accept"]
"""Whether to resume if the function was edited in the meantime."""

LABEL = "api_explanation"
"""The column for explanations in the published pipeline."""
KEYS = ("doc_id", "n_raw_tokens")
"""The columns that identify a row."""
_LABELS = (LABEL, "response", "text")
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
    edited: Edited = "refuse",
) -> Report:
    """Give every row an explanation; resume an earlier call that was interrupted.

    Args:
        source: The output of `extract`, or any Parquet file with ``activation_vector``, or
            ``activation_vectors`` for explanations of several vectors.
        output: The Parquet file to write.
        by: A function of a row, or a Parquet file with explanations (``api_explanation``,
            ``response`` or ``text``), which are matched by ``doc_id`` and ``n_raw_tokens``.
        workers: The number of concurrent calls of the function.
        chunk: Rows per chunk: the maximum that is repeated after an interruption.
        strict: Stop at the first row without a label.
        progress: Show a progress bar, if standard error is a terminal.
        edited: Whether to resume if the function was edited in the meantime; finished chunks then
            keep the labels of its earlier version. The comparison includes constants and your
            functions that it uses, but not comments.

    Raises:
        NLAError: The files do not fit, the function raised (its error is the cause), or the output
            was made with other settings. What is finished is kept.
    """
    source, output = Path(source).expanduser(), Path(output).expanduser()
    rows = _open_rows(source)
    if not is_int(workers, 1):
        raise NLAError(f"workers={shown(workers)}: expected a whole number from 1.")
    from_file = isinstance(by, str | Path)
    labeller = _labels_of(Path(by)) if from_file else by
    kept = [
        each.with_type(stored_type(each.type))
        for each in pq.read_schema(source)
        if each.name not in (LABEL, "error")
    ]
    columns = pa.schema([*kept, pa.field(LABEL, pa.string()), pa.field("error", pa.string())])
    manifest = {
        "made_by": "nnsight-nla label",
        "version": VERSION,
        "shard": None,
        "input": rows.identity,
        "labels": fingerprint_file(Path(by)) if from_file else _identify(by, output, edited),
        "chunk": chunk,
    }

    def finish(items: list[Item]) -> pa.Table:
        with ThreadPoolExecutor(workers) as pool:
            labels = list(pool.map(partial(_label, labeller), items))
        made = [
            {**_stored(item.value), LABEL: label, "error": None if label else "it has no label"}
            for item, label in zip(items, labels, strict=True)
        ]
        return records.to_table(made, columns)

    job = Job(
        "labelling",
        rows,
        manifest,
        columns,
        read_sidecar(source),
        lambda items: items,
        finish,
        strict=strict,
        errors_file=sibling(output, "errors"),
    )
    return run_job(job, output, progress=progress)


def _label(labeller: Labeller, item: Item) -> str | None:
    try:
        found: object = labeller(item.value)
    except NLAError:
        raise
    except Exception as error:
        raise NLAError(
            f"Labelling row {item.row} ({item.doc_id!r}) stopped with {type(error).__name__}: "
            f"{error}. What is finished is kept; the same call resumes there."
        ) from error
    if found is not None and not isinstance(found, str):
        raise NLAError(
            f"The label of row {item.row} is a {type(found).__name__}, expected a string, or None "
            "to leave the row out."
        )
    return (found or "").strip() or None


def _open_rows(path: Path) -> Source:
    """Open all columns of a Parquet file as rows."""
    file = open_parquet(path)
    names = file.schema_arrow.names
    vector = next((name for name in (VECTOR, VECTORS) if name in names), None)
    if vector is None:
        raise NLAError(f"{path} has no column {VECTOR!r}; it has {', '.join(names)}.")

    def item(number: int, row: dict[str, Any]) -> Item:
        return Item(number, str(row.get("doc_id", number)), row)

    raw = partial(parquet_rows, path, None, vector)
    identity, (origin, _) = fingerprint_file(path), parquet_origin(path)
    rows, check = file.metadata.num_rows, Unchanged(path, identity)
    return Source("vectors", identity, rows, raw, item, origin, check)


def _stored(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row as Arrow takes it: several vectors are a list of arrays."""
    vectors = row.get(VECTORS)
    return {**row, **({} if vectors is None else {VECTORS: list(np.atleast_2d(vectors))})}


def _labels_of(path: Path) -> Labeller:
    """Return a function that looks up a row's label in a file, by document and position."""
    names = open_parquet(path).schema_arrow.names
    column = next((name for name in _LABELS if name in names), None)
    if column is None or not set(KEYS) <= set(names):
        raise NLAError(
            f"{path} has the columns {', '.join(names)}; labels need {' and '.join(KEYS)}, and one "
            f"of {', '.join(_LABELS)}."
        )
    table = pq.read_table(path, columns=[*KEYS, column])
    keys = zip(*(table[name].to_pylist() for name in KEYS), strict=True)
    labels = dict(zip(keys, table[column].to_pylist(), strict=True))
    return lambda row: _without_tags(labels.get(tuple(row.get(name) for name in KEYS)))


def _without_tags(text: str | None) -> str | None:
    """Return an explanation without its tags, as the column holds it."""
    return extract(text)[0] if text and OPEN in text else text


def _identify(labeller: Labeller, output: Path, edited: Edited) -> dict[str, Any]:
    """Return the identity of a function, with the earlier versions that were accepted.

    Raises:
        NLAError: The function was edited since the first chunk, and that is not accepted.
    """
    if edited not in get_args(Edited):
        raise NLAError(f"edited={shown(edited)}: expected 'refuse' or 'accept'.")
    now, store = fingerprint_function(labeller, stateful=True), ChunkStore(output)
    finished, manifest = output.exists(), earlier_manifest(output)
    before = manifest.get("labels")
    if not isinstance(before, dict) or "code" not in before:
        return now  # Nothing is labelled yet, or by something else, which `check_same` reports.
    earlier = before.get("earlier", [])
    before = {name: value for name, value in before.items() if name != "earlier"}
    changed = differences(before, now)
    if changed and edited == "refuse":
        raise NLAError(
            f"{output} was labelled by an earlier version of {now['name']}:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nPass edited='accept' to keep those labels and record that, choose another output, "
            "or delete it to start over."
        )
    if not changed or finished:
        return {**before, **({"earlier": earlier} if earlier else {})}
    labels = {**now, "earlier": [*earlier, before]}
    with store.open(manifest), atomic_file(store.folder / "manifest.json", advice=ADVICE) as file:
        file.write(json.dumps({**manifest, "labels": labels}, indent=1).encode())
    return labels
