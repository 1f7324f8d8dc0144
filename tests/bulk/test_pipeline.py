"""The loop over chunks, with steps of plain Python."""

import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import NLAError
from nnsight_nla.bulk.chunk_store import ChunkStore
from nnsight_nla.bulk.pipeline import Job, run_job
from nnsight_nla.bulk.sources import Item, Source

COLUMNS = pa.schema(
    [("split", pa.string()), ("doc_id", pa.string()), ("value", pa.int64()), ("error", pa.string())]
)
ROWS = 10


def finish(items):
    rows = [
        {"split": "ab"[item.row % 2], "doc_id": item.doc_id, "value": item.value,
         "error": "it is 7" if item.row == 7 else None}
        for item in items
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def job(**options) -> Job:
    source = Source(
        "texts", {"name": "numbers"}, options.pop("count", ROWS),
        lambda start: iter(range(start, ROWS)), lambda row, raw: Item(row, f"d{row}", raw * 10),
    )  # fmt: skip
    manifest = {"shard": options.pop("shard", None), "chunk": 3}
    steps = {"read": lambda items: items, "finish": finish, **options}
    return Job("counting", source, manifest, COLUMNS, {"kind": "nla_dataset"}, **steps)


def values(path):
    return pq.read_table(path)["value"].to_pylist()


def threads() -> list[threading.Thread]:
    names = ("nnsight-nla-read", "nnsight-nla-finish")
    return [each for each in threading.enumerate() if each.name.startswith(names)]


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("count", [ROWS, None])
def test_the_rows_have_the_order_of_the_input(tmp_path, prefetch, count, together):
    output = tmp_path / "out.parquet"
    report = run_job(job(prefetch=prefetch, count=count, together=together), output)
    assert values(output) == [row * 10 for row in range(ROWS)]
    assert (report.rows, report.errors, report.chunks, report.resumed) == (10, 1, 4, 0)
    assert str(report).startswith(f"{output}: 10 rows, 1 with an error (")
    assert not ChunkStore(output).folder.exists()
    assert threads() == []
    again = run_job(job(), output)
    assert (again.rows, again.errors, again.chunks, again.resumed) == (10, 1, 0, 4)


def test_reading_is_one_chunk_ahead_and_no_more(tmp_path):
    started, first = [], threading.Event()

    def read(items):
        started.append(items[0].row)
        first.set()
        return items

    def slow(items):
        if items[0].row == 0:
            while len(started) < 3:  # One in the queue, and one that waits for its place there.
                first.wait(0.01)
        assert len(started) <= items[0].row // 3 + 3
        return finish(items)

    run_job(job(read=read, finish=slow, prefetch=True), tmp_path / "out.parquet")
    assert started == [0, 3, 6, 9]


def test_two_chunks_are_finished_at_a_time_and_no_more(tmp_path):
    started, running, guard = [], set(), threading.Lock()
    second = threading.Event()

    def slow(items):
        row = items[0].row
        with guard:
            started.append(row)
            running.add(row)
            assert len(running) <= 2
        if row == 3:
            second.set()
        assert row != 0 or second.wait(20), "the second chunk waited for the first"
        with guard:
            running.remove(row)
        return finish(items)

    output = tmp_path / "out.parquet"
    run_job(job(finish=slow, together=2), output)
    assert started == [0, 3, 6, 9]
    assert values(output) == [row * 10 for row in range(ROWS)]


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_the_end_of_a_job_stops_the_other_chunk(tmp_path, error):
    stop, other = threading.Event(), threading.Event()

    def slow(items):
        if items[0].row == 0:
            other.wait(20)
            raise error
        other.set()
        assert stop.wait(20), "it was not told"
        return finish(items)

    with pytest.raises(type(error)):
        run_job(job(finish=slow, together=2, stop=stop), tmp_path / "out.parquet")
    assert threads() == []


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("step", ["read", "finish"])
def test_a_failed_step_ends_the_loop_and_the_next_call_resumes(tmp_path, step, prefetch, together):
    def broken(items):
        if items[0].row == 6:
            raise RuntimeError("out of memory")
        return items if step == "read" else finish(items)

    output = tmp_path / "out.parquet"
    with pytest.raises(RuntimeError, match="out of memory"):
        run_job(job(prefetch=prefetch, together=together, **{step: broken}), output)
    assert threads() == []
    assert ChunkStore(output).numbers() == [0, 1]
    assert run_job(job(), output).resumed == 2
    assert values(output) == [row * 10 for row in range(ROWS)]


def test_strict_ends_at_a_bad_row_and_leaves_no_thread(tmp_path):
    output = tmp_path / "out.parquet"
    with pytest.raises(NLAError, match="^Row 'd7': it is 7. .* pass strict=False to record"):  # noqa: RUF043
        run_job(job(strict=True, prefetch=True), output)
    assert threads() == []
    assert ChunkStore(output).numbers() == [0, 1]


def test_splits_and_errors_go_to_files_of_their_own(tmp_path):
    output = tmp_path / "out.parquet"
    splits = {name: tmp_path / f"{name}.parquet" for name in "ab"}
    errors = tmp_path / "errors.parquet"
    options = {"splits": splits, "errors_file": errors}
    report = run_job(job(**options), output)
    assert (report.rows, report.errors, report.outputs) == (9, 1, tuple(splits.values()))
    assert values(splits["a"]) == [0, 20, 40, 60, 80]
    assert values(splits["b"]) == [10, 30, 50, 90]
    assert values(errors) == [70]
    assert pq.read_schema(splits["a"]).names == ["doc_id", "value"]
    assert pq.read_schema(errors).names == ["doc_id", "value", "error"]
    splits["b"].unlink()
    assert run_job(job(**options), output).rows == 9
    assert values(splits["b"]) == [10, 30, 50, 90]


def test_a_shard_has_every_nth_chunk(tmp_path):
    output = tmp_path / "out.parquet"
    run_job(job(shard="2/2"), output)
    assert values(output) == [30, 40, 50, 90]
    with pytest.raises(NLAError, match=r"shard: '2/2' before, '1/2' now\n"):
        run_job(job(shard="1/2"), output)
