"""The loop that `run`, `extract` and `label` share: chunk after chunk, each finished or absent.

    source → [ read: the target ] → [ finish: the rows ] → part files → the finished file

Where the two steps are two models, a thread reads one chunk ahead: nnsight runs one trace per model
at a time, and here each model has a thread of its own. On a host that bounds the requests in flight
to one per model.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import NLAError
from .chunk_store import Parts
from .finished_file import assemble, note_of
from .manifest import check_same, parse_shard
from .progress import bar
from .retry import patiently
from .sources import Item, Source

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """What is made of an input."""

    name: str
    """One word, for the progress bar."""
    source: Source
    """The input."""
    chunk: int
    """Rows of the input per chunk."""
    manifest: dict[str, Any]
    """Everything that a row depends on, ``shard`` among it."""
    schema: pa.Schema
    """Of the rows; ``error`` is a column of it."""
    sidecar: dict[str, Any]
    """In the projects' own schema."""
    read: Callable[[list[Item]], Any]
    """The first step over a chunk."""
    finish: Callable[[Any], pa.Table]
    """The second: the chunk's rows."""
    ahead: bool = False
    """Whether the first step may run while the second does: they use two models."""
    waits: bool = False
    """Whether a host runs one of them, and is waited for while it is away."""
    strict: bool = False
    """Whether a bad row ends the work."""
    splits: dict[str, Path] = field(default_factory=dict[str, Path])
    """Files by the value of the column ``split``; none: one file."""
    apart: Path | None = None
    """A file for rows with an error, made where there are any; ``None``: they stay among the
    others."""


@dataclass(frozen=True)
class Report:
    """What a run did."""

    outputs: tuple[Path, ...]
    """The finished files."""
    rows: int
    """Rows in them."""
    errors: int
    """Rows in them that have an error instead of what was asked for."""
    chunks: int
    """Chunks that were made now."""
    resumed: int
    """Chunks that were there already."""
    seconds: float
    """How long it took."""

    def __str__(self) -> str:
        before = f", {self.resumed} of its chunks were there" if self.resumed else ""
        bad = f", {self.errors} with an error" if self.errors else ""
        files = ", ".join(map(str, self.outputs))
        return f"{files}: {self.rows:,} rows{bad} ({self.seconds:.1f} s{before})"


def work(job: Job, output: Path, *, progress: bool = True) -> Report:
    """Make every chunk that is not there yet, then the finished file.

    Raises:
        NLAError: The output was begun with other settings, cannot be written, or (``strict``) a
            row is bad. What is finished is kept.
    """
    began = time.monotonic()
    part, of = parse_shard(job.manifest["shard"])
    outputs = job.splits or {"": output}
    if all(path.exists() for path in outputs.values()):
        notes = [_same(path, job) for path in outputs.values()]
        Parts(output).remove()
        rows = sum(sum(note["rows"]) for note in notes)
        errors = notes[0]["errors"]
        resumed = len(notes[0]["rows"])
        return Report(tuple(outputs.values()), rows, errors, 0, resumed, time.monotonic() - began)
    if not output.parent.is_dir():
        raise NLAError(f"{output}: there is no folder {output.parent}. Make it first.")
    for path in outputs.values():
        if path.exists():
            _same(path, job)
    parts = Parts(output)
    with parts.open(job.manifest):
        done = set(parts.numbers())
        made = 0
        # The number of rows is known where an unfinished input could hide its end.
        total = job.source.count
        mine = None if total is None else sum(
            min(job.chunk, total - start)
            for number, start in enumerate(range(0, total, job.chunk))
            if number % of == part - 1 and number not in done
        )  # fmt: skip
        with bar(job.name, mine, shown=progress) as shown:
            chunks = job.source.chunks(
                job.chunk, lambda number: number % of == part - 1 and number not in done
            )
            step = _ahead if job.ahead else _in_turn
            for number, size, table in step(job, chunks, shown.say):
                if job.strict and table["error"].null_count < len(table):
                    raise NLAError(_complaint(table))
                parts.write(number, table)
                made += 1
                shown.advance(size, len(table))
        rows, errors = _assemble(job, parts, outputs)
        report = Report(
            tuple(outputs.values()), rows, errors, made, len(done), time.monotonic() - began
        )
    parts.remove()
    return report


def _in_turn(
    job: Job, chunks: Iterator[tuple[int, list[Item]]], say: Say
) -> Iterator[tuple[int, int, pa.Table]]:
    for number, items in chunks:
        found = _tried(job, lambda items=items: job.read(items), say)
        yield number, len(items), _tried(job, lambda found=found: job.finish(found), say)


def _ahead(
    job: Job, chunks: Iterator[tuple[int, list[Item]]], say: Say
) -> Iterator[tuple[int, int, pa.Table]]:
    """The same with the first step one chunk ahead, in a thread."""
    read: queue.Queue[tuple[int, int, Any] | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(each: Any) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                read.put(each, timeout=0.1)
                return

    def run() -> None:
        try:
            for number, items in chunks:
                if stop.is_set():
                    return
                found = _tried(job, lambda items=items: job.read(items), say, stop)
                put((number, len(items), found))
            put(None)
        except BaseException as error:
            put(error)

    reader = threading.Thread(target=run, name="nnsight-nla-read", daemon=True)
    reader.start()
    try:
        while (each := read.get()) is not None:
            if isinstance(each, BaseException):
                raise each
            number, size, found = each
            yield number, size, _tried(job, lambda found=found: job.finish(found), say)
    finally:
        stop.set()
        reader.join()


def _tried(job: Job, step: Callable[[], Any], say: Say, stop: threading.Event | None = None) -> Any:
    return patiently(step, say, stop) if job.waits else step()


def _assemble(job: Job, parts: Parts, outputs: dict[str, Path]) -> tuple[int, int]:
    """Write the finished files; the one that `work` looks for is the last."""
    unwritten = {"error"} if job.apart else set[str]()
    unwritten |= {"split"} if job.splits else set[str]()
    schema = pa.schema([column for column in job.schema if column.name not in unwritten])

    def tables(keep: Callable[[pa.Table], Any] | None) -> Iterator[pa.Table]:
        for number in parts.numbers():
            table = parts.read(number)
            yield table if keep is None else table.filter(keep(table))

    if job.apart is None:
        return assemble(outputs[""], schema, tables(None), job.manifest, job.sidecar)
    bad = sum(len(table) for table in tables(_is_bad))
    if bad:
        manifest = {**job.manifest, "split": "errors"}
        columns = pa.schema([each for each in job.schema if each.name in {*schema.names, "error"}])
        assemble(job.apart, columns, tables(_is_bad), manifest, {**job.sidecar, "bulk": manifest})
    rows = 0
    for split, path in outputs.items():
        manifest = {**job.manifest, **({"split": split} if split else {})}
        rows += assemble(
            path, schema, tables(_is_good_of(split)), manifest, {**job.sidecar, "bulk": manifest},
            errors=bad,
        )[0]  # fmt: skip
    return rows, bad


def _is_bad(table: pa.Table) -> Any:
    return pc.is_valid(table["error"])


def _is_good_of(split: str) -> Callable[[pa.Table], Any]:
    def good(table: pa.Table) -> Any:
        fine = pc.is_null(table["error"])
        return pc.and_(fine, pc.equal(table["split"], split)) if split else fine

    return good


def _same(path: Path, job: Job) -> dict[str, Any]:
    """The note of a finished file, which has to be the one that this job would make."""
    note = note_of(path)
    split = note["manifest"].get("split")
    check_same(note["manifest"], {**job.manifest, **({"split": split} if split else {})}, path)
    return note


def _complaint(table: pa.Table) -> str:
    bad = table.filter(pc.is_valid(table["error"])).slice(0, 1).to_pylist()[0]
    place = f", position {bad['position']}" if bad.get("position") is not None else ""
    return (
        f"Row {bad['doc_id']!r}{place}: {bad['error']}. Mend or remove it, or leave out --strict "
        "to record it and go on."
    )
