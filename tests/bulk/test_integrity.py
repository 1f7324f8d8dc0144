"""Chunks that go missing, inputs that change, and files of somebody else."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from nnsight_nla import NLAError, bulk
from nnsight_nla.bulk.chunk_store import ChunkStore
from nnsight_nla.bulk.pipeline import Job, run_job
from nnsight_nla.bulk.sources import Item, Source, open_source

COLUMNS = pa.schema([("doc_id", pa.string()), ("value", pa.string()), ("error", pa.string())])
ROWS, CHUNK = 12, 3


def finish(items):
    rows = [{"doc_id": i.doc_id, "value": str(i.value), "error": i.error} for i in items]
    return pa.Table.from_pylist(rows, schema=COLUMNS)


def corpus(folder: Path, rows: int = ROWS) -> Path:
    path = folder / "in.jsonl"
    path.write_text("".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(rows)))
    return path


def job(source: Source, shard=None, read=lambda items: items, **options) -> Job:
    manifest = {"made_by": "nnsight-nla run", "shard": shard, "chunk": CHUNK}
    manifest["input"] = {"rows": source.count, **source.identity}
    return Job(
        "copying", source, manifest, COLUMNS, {"kind": "nla_dataset"}, read, finish, **options
    )


def values(path: Path) -> list[str]:
    return pq.read_table(path)["value"].to_pylist()


WHOLE = [f"row {i}" for i in range(ROWS)]


def after(number: int, act):
    """A first step that does something before it reads chunk `number`."""

    def read(items):
        if items[0].row == number * CHUNK:
            act()
        return items

    return read


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 255
    path.write_bytes(content)


def interfere(how: str, folder: Path) -> None:
    """Do to the first chunks what somebody else might."""
    first, second, *_ = sorted(folder.glob("00*.parquet"))
    if how == "missing":
        first.unlink()
    elif how == "truncated":
        first.write_bytes(first.read_bytes()[:-9])
    elif how == "damaged":
        damage(first)
    elif how == "swapped":
        kept = first.read_bytes()
        first.write_bytes(second.read_bytes())
        second.write_bytes(kept)
    elif how == "twice":
        shutil.copy(first, folder / f"000000-{'0' * 24}.parquet")
    elif how == "renamed":
        first.rename(folder / first.name.replace("000000", "000001"))
        second.rename(folder / second.name.replace("000001", "000000"))
    elif how == "stray":
        shutil.copy(first, folder / first.name.replace("000000", "000099"))
    elif how == "of another run":
        other = ChunkStore(folder.with_name("other.parquet"))
        with other.open({"shard": None}):
            other.write(0, [finish([Item(i, f"{i}", f"other {i}") for i in range(CHUNK)])])
            first.unlink()
            (path,) = other.folder.glob("*.parquet")
            shutil.copy(path, folder)
    elif how == "foreign":
        pq.write_table(pa.table({"doc_id": ["a"], "value": ["b"], "error": [None]}), first)
    elif how == "unnamed":
        (folder / "notes.parquet").write_bytes(b"mine")
    elif how == "removed":
        shutil.rmtree(folder)


HOWS = (
    "missing", "truncated", "damaged", "swapped", "twice", "renamed", "stray", "of another run",
    "foreign", "unnamed", "removed",
)  # fmt: skip


@pytest.mark.parametrize("how", HOWS)
def test_chunks_are_checked_before_they_are_put_together(tmp_path, how):
    source, output = open_source(corpus(tmp_path)), tmp_path / "out.parquet"
    folder = ChunkStore(output).folder
    read = after(3, lambda: interfere(how, folder))
    if how == "unnamed":  # It is no chunk, and is left where it is.
        run_job(job(source, read=read), output)
        assert (folder / "notes.parquet").read_bytes() == b"mine"
    else:
        with pytest.raises(NLAError) as caught:
            run_job(job(source, read=read), output)
        assert str(folder) in str(caught.value)
        assert not output.exists()
    # Repaired as the message says, or not at all: what is finished is whole, or there is nothing.
    if folder.is_dir():
        for path in folder.glob("*.parquet"):
            path.unlink()
    if how != "unnamed":
        run_job(job(source), output)
    assert values(output) == WHOLE


@pytest.mark.parametrize("how", [each for each in HOWS if each not in ("missing", "removed")])
def test_a_resumed_run_looks_at_what_is_there(tmp_path, how):
    source, output = open_source(corpus(tmp_path)), tmp_path / "out.parquet"

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_job(job(source, read=after(2, stop)), output)
    interfere(how, ChunkStore(output).folder)
    with pytest.raises(NLAError) as caught:
        run_job(job(source), output)
    assert "out.parquet.parts" in str(caught.value)
    assert not output.exists()


@given(data=st.data())
def test_a_chunk_with_any_byte_changed_is_refused(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    store, table = ChunkStore(folder / "out.parquet"), finish([Item(0, "a", "x" * 50)])
    with store.open({"shard": None}):
        store.write(0, [table])
        (path,) = store.folder.glob("*.parquet")
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        path.write_bytes(content)
        with pytest.raises(NLAError, match=path.name):
            store.read(0)


def shards(folder: Path) -> list[Path]:
    source = open_source(corpus(folder))
    outputs = [folder / f"s{number}.parquet" for number in (1, 2)]
    for number, output in enumerate(outputs, start=1):
        run_job(job(source, shard=f"{number}/2"), output)
    return outputs


def rewritten(path: Path, change) -> None:
    """Write a finished file again with its metadata changed, or its rows."""
    file = pq.ParquetFile(path)
    note = json.loads(file.metadata.metadata[b"nnsight_nla.bulk"])
    groups = [file.read_row_group(i) for i in range(file.num_row_groups)]
    change(note, groups)
    with pq.ParquetWriter(path, file.schema_arrow) as writer:
        for group in groups:
            writer.write_table(group)
        writer.add_key_value_metadata({b"nnsight_nla.bulk": json.dumps(note).encode()})


@pytest.mark.parametrize(
    "change",
    [
        lambda note, groups: groups.pop(),
        lambda note, groups: note["rows"].pop(),
        lambda note, groups: (note["rows"].pop(), groups.pop()),
        lambda note, groups: groups.append(groups[0]),
        lambda note, groups: groups.__setitem__(0, groups[0].slice(1)),
    ],
)
def test_merge_refuses_a_shard_that_is_not_whole(tmp_path, change):
    outputs = shards(tmp_path)
    rewritten(outputs[1], change)
    with pytest.raises(NLAError, match=r"s2\.parquet is incomplete: .* Make this shard again"):
        bulk.merge(outputs, tmp_path / "merged.parquet")
    assert not (tmp_path / "merged.parquet").exists()


def test_merge_names_a_damaged_shard(tmp_path):
    outputs = shards(tmp_path)
    damage(outputs[1])
    with pytest.raises(NLAError, match=r"s2\.parquet is damaged: .* Make this shard again"):
        bulk.merge(outputs, tmp_path / "merged.parquet")


def appended(path):
    with path.open("a") as file:
        file.write('{"text": "later"}\n')


def rewrite(path):
    path.write_text(path.read_text().replace("row 1", "ROW 1"))


def rewrite_quietly(path):
    stat = path.stat()
    rewrite(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("at", range(4))
def test_lines_that_are_added_meanwhile_are_left_out(tmp_path, at, prefetch):
    path, output = corpus(tmp_path), tmp_path / "out.parquet"
    read = after(at, lambda: appended(path))
    report = run_job(job(open_source(path), read=read, prefetch=prefetch), output)
    assert (report.rows, values(output)) == (ROWS, WHOLE)


def test_a_last_line_that_grows_ends_where_it_was_counted(tmp_path):
    path, output = corpus(tmp_path), tmp_path / "out.parquet"
    path.write_text(path.read_text() + '{"text": "last"}')
    read = after(1, lambda: path.write_text(path.read_text() + ' {"text": "more"}\n'))
    run_job(job(open_source(path), read=read), output)
    assert values(output) == [*WHOLE, "last"]


@pytest.mark.parametrize("prefetch", [False, True])
@pytest.mark.parametrize("at", range(4))
@pytest.mark.parametrize("change", [rewrite, rewrite_quietly, truncate, Path.unlink])
def test_an_input_that_changes_is_refused_and_nothing_of_it_kept(tmp_path, change, at, prefetch):
    path, output = corpus(tmp_path), tmp_path / "out.parquet"
    source, before = open_source(path), path.read_bytes()
    with pytest.raises(NLAError, match=r"in\.jsonl (was changed while it was read|could not be)"):
        run_job(job(source, read=after(at, lambda: change(path)), prefetch=prefetch), output)
    assert not output.exists()
    path.write_bytes(before)
    run_job(job(open_source(path)), output)
    assert values(output) == WHOLE


def matrices(folder: Path) -> list[Path]:
    vectors = torch.arange(1200.0).reshape(600, 2)
    np.save(folder / "c.npy", vectors.numpy())
    np.save(folder / "f.npy", np.asfortranarray(vectors.numpy()))
    save_file({"b": torch.ones(3), "W": vectors}, folder / "a.safetensors")
    save_file({"W": vectors.to(torch.float16)}, folder / "h.safetensors")
    pq.write_table(pa.table({"activation_vector": vectors.tolist()}), folder / "a.parquet")
    return sorted(folder.iterdir())


def test_a_matrix_that_is_cut_off_while_it_is_read_is_an_error_not_a_crash(tmp_path):
    for path in matrices(tmp_path):
        source = open_source(path)
        chunks = source.chunks(300, lambda _: True)
        found = [item.value.tolist() for item in next(chunks)[1]]
        assert found == [[2.0 * row, 2.0 * row + 1] for row in range(300)], path
        os.truncate(path, 128)
        with pytest.raises(NLAError, match=rf"{path.name}"):
            list(chunks)
            source.check(thorough=True)


STRANGERS = {
    "out.parquet": b"mine",
    "out.parquet.nla_meta.yaml": b"mine: true\n",
    "out.errors.parquet": b"mine",
    "out.parquet.parts/notes.txt": b"mine",
    "out.parquet.parts/thesis.tmp": b"mine",
    "out.parquet.parts": b"mine",
    "out.parquet.parts/000000.parquet": b"mine",
}


WRITTEN_BY_MERGE = ("out.parquet", "out.parquet.nla_meta.yaml")


@pytest.mark.parametrize(
    ("name", "merged"),
    [*((name, False) for name in STRANGERS), *((name, True) for name in WRITTEN_BY_MERGE)],
)
def test_a_users_file_is_refused_and_stays(tmp_path, name, merged):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(STRANGERS[name])
    output = tmp_path / "out.parquet"
    (tmp_path / "data").mkdir()
    outputs = shards(tmp_path / "data")
    with pytest.raises(NLAError, match=r"out\.(errors\.)?parquet"):
        if merged:
            bulk.merge(outputs, output)
        else:
            source = open_source(tmp_path / "data" / "in.jsonl")
            run_job(job(source, errors_file=tmp_path / "out.errors.parquet"), output)
    assert path.read_bytes() == STRANGERS[name]


def test_a_neighbour_of_the_output_stays(tmp_path):
    others = ("out.tmp", "out.parquet.tmp", ".out.parquet.tmp", "out.parquet.bak")
    for name in others:
        (tmp_path / name).write_bytes(b"mine")
    run_job(job(open_source(corpus(tmp_path))), tmp_path / "out.parquet")
    assert {(tmp_path / name).read_bytes() for name in others} == {b"mine"}


def test_links_are_followed_or_refused_and_never_replaced(tmp_path):
    (tmp_path / "data").mkdir()
    outputs, link = shards(tmp_path / "data"), tmp_path / "out.parquet"
    link.symlink_to(tmp_path / "nowhere.parquet")
    for act in (
        lambda: bulk.merge(outputs, link),
        lambda: run_job(job(open_source(tmp_path / "data" / "in.jsonl")), link),
    ):
        with pytest.raises(
            NLAError, match=r"is a link to .*nowhere\.parquet, which does not exist"
        ):
            act()
        assert link.is_symlink()
    bulk.merge(outputs, tmp_path / "nowhere.parquet")
    bulk.merge(outputs, link)
    assert link.is_symlink()
    assert values(link) == WHOLE


def test_merge_replaces_what_the_same_merge_wrote_and_nothing_else(tmp_path):
    outputs = shards(tmp_path)
    merged = tmp_path / "merged.parquet"
    bulk.merge(outputs, merged)
    before = merged.read_bytes()
    bulk.merge(outputs, merged)
    assert merged.read_bytes() == before
    with pytest.raises(
        NLAError, match=r"s1\.parquet was made with other settings:\n  shard: '1/2'"
    ):
        bulk.merge(outputs, outputs[0])
    assert values(outputs[0]) == [*WHOLE[:3], *WHOLE[6:9]]


def test_a_manifest_that_is_none_is_named(tmp_path):
    store = ChunkStore(tmp_path / "out.parquet")
    store.folder.mkdir()
    for content in ("{", "[]"):
        (store.folder / "manifest.json").write_text(content)
        with pytest.raises(NLAError, match=r"manifest\.json is not a manifest of this package"):
            run_job(job(open_source(corpus(tmp_path))), tmp_path / "out.parquet")
