"""The loop that `run`, `extract` and `label` share: chunk by chunk, each complete or absent.

    source → [ read: the target ] → [ finish: the rows ] → chunk store → the finished file

Where the two steps use two models, a thread reads one chunk ahead: nnsight runs one trace per model
at a time, and here each model has a thread of its own. On an NDIF host this means at most one
request in flight per model.

On an engine that serves several threads (vLLM), two chunks are finished at a time, each in a
thread: while the last replies of a chunk are generated, and while it is scored, the next keeps the
engine full.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from .. import progress as bars
from ..core.answer_trust import shown_shares
from ..errors import NLAError
from .chunk_store import ChunkStore
from .finished_file import read_note, refuse_other_file, write_finished
from .manifest import check_same, parse_shard
from .retry import retry_while_away
from .sources import Item, Source

_Found = tuple[int, int, Any]
"""The number and the size of a chunk, and what was made of it."""


@dataclass(frozen=True)
class Job:
    """What to make of an input."""

    name: str
    """A word for the progress bar."""
    source: Source
    """The input."""
    manifest: dict[str, Any]
    """Everything that a row depends on, ``shard`` and ``chunk`` included."""
    schema: pa.Schema
    """The columns of the rows; ``error`` is one of them."""
    sidecar: dict[str, Any]
    """The output's sidecar, without the manifest."""
    read: Callable[[list[Item]], Any]
    """The first step, on the rows of a chunk."""
    finish: Callable[[Any], pa.Table | Iterable[pa.Table]]
    """The second step: from what was read to the chunk's rows, in one table or more."""
    prefetch: bool = False
    """Whether the two steps may run at the same time: they use two models."""
    together: int = 1
    """How many chunks are finished at a time."""
    stop: threading.Event = field(default_factory=threading.Event)
    """Set when the job ends; a step that waits or runs in a thread then gives up."""
    remote: bool = False
    """Whether a step runs on a host or a server, and is retried while that is away."""
    strict: bool = False
    """Whether a bad row ends the job."""
    splits: dict[str, Path] = field(default_factory=dict[str, Path])
    """A file for each value of the column ``split``; empty: one file."""
    errors_file: Path | None = None
    """A file for the rows with an error; ``None``: they stay among the others."""
    ignored: tuple[str, ...] = ()
    """What the input claims about itself and is ignored."""


@dataclass(frozen=True)
class Report:
    """The result of a call."""

    outputs: tuple[Path, ...]
    """The finished files."""
    rows: int
    """Rows in them."""
    errors: int
    """Rows that have an error."""
    chunks: int
    """Chunks that this call made."""
    resumed: int
    """Chunks that were there already."""
    seconds: float
    """The duration of the call."""
    ignored: tuple[str, ...] = ()
    """What the input claims about itself and was ignored."""
    unchanged: Mapping[str, float] = field(default_factory=dict[str, float])
    """Of an oracle's answers, the share that stays the same ``without`` the vectors, with
    ``random`` ones, and with those of ``other`` rows; see `AnswerTrust`."""

    def __str__(self) -> str:
        before = f", {self.resumed} of its chunks were there" if self.resumed else ""
        bad = f", {self.errors} with an error" if self.errors else ""
        files = ", ".join(map(str, self.outputs))
        ignored = f"; ignored: {'; '.join(self.ignored)}" if self.ignored else ""
        shares = shown_shares(self.unchanged)
        same = f"; {shares}" if self.unchanged else ""
        return f"{files}: {self.rows:,} rows{bad} ({self.seconds:.1f} s{before}){ignored}{same}"


def run_job(job: Job, output: Path, *, progress: bool = True) -> Report:
    """Make every chunk that is missing, then the finished file.

    Raises:
        NLAError: The output was made with other settings or cannot be written, or (``strict``) a
            row is bad. What is finished is kept.
    """
    start = time.monotonic()
    shard, shards = parse_shard(job.manifest["shard"])
    size: int = job.manifest["chunk"]
    outputs = job.splits or {"": output}
    paths = tuple(outputs.values())
    store = ChunkStore(output)
    for path in filter(None, (*paths, job.errors_file)):
        refuse_other_file(path)
    if job.errors_file is not None and job.errors_file.exists():
        _checked_note(job.errors_file, job)
    notes = [_checked_note(path, job) for path in paths if path.exists()]
    if len(notes) == len(paths):
        store.remove()
        rows, errors = sum(sum(note["rows"]) for note in notes), notes[0]["errors"]
        resumed, seconds = len(notes[0]["rows"]), time.monotonic() - start
        return Report(paths, rows, errors, 0, resumed, seconds, job.ignored)
    if not output.parent.is_dir():
        raise NLAError(f"{output}: the folder {output.parent} does not exist. Create it first.")
    with store.open(job.manifest):
        done = set(store.numbers())
        for number in done:
            store.read(number)  # Damage is better found before hours of work than after.

        def missing(number: int) -> bool:
            return number % shards == shard - 1 and number not in done

        count = job.source.count
        total = None if count is None else sum(
            min(size, count - first) for first in range(0, count, size) if missing(first // size)
        )  # fmt: skip
        unit = "document" if job.source.kind == "texts" else "vector"
        rows, made = 0, list[int]()
        with (
            bars.progress(job.name, total=total, unit=unit, shown=progress) as bar,
            closing(_tables(job, job.source.chunks(size, missing), bar.note)) as tables,
        ):
            for number, items, parts in tables:
                job.source.check()
                rows += store.write(number, map(_without_errors, parts) if job.strict else parts)
                made.append(number)
                bar.advance(items, f"{rows / (time.monotonic() - start):.1f} rows/s")
        try:
            job.source.check(thorough=True)
        except NLAError:
            store.discard(made)
            raise
        numbers = sorted(done.union(made))
        store.check(numbers)
        _check_complete(numbers, None if count is None else -(-count // size), job, store)
        rows, errors = _write_outputs(job, store, numbers, outputs)
        seconds = time.monotonic() - start
        report = Report(paths, rows, errors, len(made), len(done), seconds, job.ignored)
    store.remove()
    return report


def _tables(
    job: Job, chunks: Generator[tuple[int, list[Item]], None, None], note: Callable[[str], None]
) -> Generator[tuple[int, int, Iterable[pa.Table]], None, None]:
    """Yield the number, the size and the rows of each chunk, in parts."""

    def attempt(step: Callable[[], Any]) -> Any:
        return retry_while_away(step, note, job.stop) if job.remote else step()

    def finish(found: Any) -> Any:
        return attempt(partial(job.finish, found))

    read = ((number, len(items), attempt(partial(job.read, items))) for number, items in chunks)
    found = _prefetched(read) if job.prefetch else read
    made = _together(found, finish, job) if job.together > 1 else _in_turn(found, finish)
    # An error's traceback would keep the input's file open.
    with closing(chunks), closing(found), closing(made):
        try:
            for number, size, rows in made:
                yield number, size, [rows] if isinstance(rows, pa.Table) else rows
        finally:
            job.stop.set()


def _in_turn(
    found: Iterable[_Found], finish: Callable[[Any], Any]
) -> Generator[_Found, None, None]:
    for number, size, value in found:
        yield number, size, finish(value)


def _together(
    found: Iterable[_Found], finish: Callable[[Any], Any], job: Job
) -> Generator[_Found, None, None]:
    """Finish chunks in threads, some at a time; yield them in their order."""
    waiting: deque[tuple[int, int, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(job.together, thread_name_prefix="nnsight-nla-finish")

    def submitted() -> Iterator[tuple[int, int, Future[Any]]]:
        try:
            for number, size, value in found:
                yield number, size, pool.submit(finish, value)
        except Exception as error:  # What was read before is finished first.
            failed = Future[Any]()
            failed.set_exception(error)
            yield -1, 0, failed

    try:
        for each in submitted():
            waiting.append(each)
            if len(waiting) == job.together:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    except BaseException:
        job.stop.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _result(chunk: tuple[int, int, Future[Any]]) -> _Found:
    number, size, future = chunk
    return number, size, future.result()


def _prefetched(values: Iterator[Any]) -> Generator[Any, None, None]:
    """Compute the next value in a thread while the caller uses the current one."""
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(maxsize=1)
    end, stop = object(), threading.Event()

    def put(value: Any, error: BaseException | None = None) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                ready.put((value, error), timeout=0.1)
                return

    def compute() -> None:
        try:
            for value in values:
                put(value)
                if stop.is_set():
                    return
            put(end)
        except BaseException as error:
            put(end, error)

    thread = threading.Thread(target=compute, name="nnsight-nla-read", daemon=True)
    thread.start()
    try:
        while True:
            value, error = ready.get()
            if error is not None:
                raise error
            if value is end:
                return
            yield value
    finally:
        stop.set()
        thread.join()


def _check_complete(numbers: list[int], total: int | None, job: Job, store: ChunkStore) -> None:
    """Check that the chunks are all those of the input, or of this shard.

    Raises:
        NLAError: Some are missing, or there are more.
    """
    shard, shards = parse_shard(job.manifest["shard"])
    last = total if total is not None else max(numbers, default=-1) + 1
    expected = list(range(shard - 1, last, shards))
    if numbers != expected:
        wrong = sorted(set(numbers) ^ set(expected))[:5]
        raise NLAError(
            f"The chunks in {store.folder} are not those of the input: number "
            f"{', '.join(map(str, wrong))} is missing, or is one too many. Delete the folder and "
            "rerun with the same arguments."
        )


def _write_outputs(
    job: Job, store: ChunkStore, numbers: list[int], outputs: dict[str, Path]
) -> tuple[int, int]:
    """Write the finished files, and that of the rows with errors before them."""
    hidden = {"split"} if job.splits else set[str]()

    def write(
        path: Path, hidden: set[str], select: Callable[[pa.Table], pa.Table], split: str = "",
        errors: int = 0,
    ) -> tuple[int, int]:  # fmt: skip
        columns = pa.schema([column for column in job.schema if column.name not in hidden])
        chunks = (map(select, store.read(number)) for number in numbers)
        manifest = _manifest_of(job, split)
        return write_finished(path, columns, chunks, manifest, job.sidecar, errors=errors)

    if job.errors_file is None:
        return write(outputs[""], hidden, lambda table: table)
    errors = sum(len(_bad(part)) for number in numbers for part in store.read(number))
    if errors:
        write(job.errors_file, hidden, _bad, "errors")
    hidden |= {"error"}
    rows = [
        write(path, hidden, partial(_good, split=split), split, errors)[0]
        for split, path in outputs.items()
    ]
    return sum(rows), errors


def _manifest_of(job: Job, split: str | None) -> dict[str, Any]:
    return {**job.manifest, "split": split} if split else job.manifest


def _bad(table: pa.Table) -> pa.Table:
    return table.filter(table["error"].is_valid())


def _good(table: pa.Table, split: str) -> pa.Table:
    good = table.filter(table["error"].is_null())
    return good.filter(pc.call_function("equal", [good["split"], split])) if split else good


def _checked_note(path: Path, job: Job) -> dict[str, Any]:
    """Return the note of a finished file, which must be the one that this job would write."""
    note = read_note(path)
    check_same(note["manifest"], _manifest_of(job, note["manifest"].get("split")), path)
    return note


def _without_errors(table: pa.Table) -> pa.Table:
    """Return the rows, none of which is bad.

    Raises:
        NLAError: One is.
    """
    bad = _bad(table).slice(0, 1).to_pylist()
    if not bad:
        return table
    (row,) = bad
    place = f", position {row['position']}" if row.get("position") is not None else ""
    raise NLAError(
        f"Row {row['doc_id']!r}{place}: {row['error']}. Correct or remove it, or pass strict=False "
        "to record the error and continue."
    )
