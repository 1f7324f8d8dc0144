"""Chunks and shards that version 0.1 wrote, whose round-trip cosine was called ``score``."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import Sampling, bulk
from nnsight_nla.bulk.chunk_store import ChunkStore

OPTIONS = {"sampling": Sampling(max_new_tokens=6), "chunk": 2, "progress": False}


@pytest.fixture
def source(residuals, tmp_path):
    path = tmp_path / "in.parquet"
    cells = residuals[-5:].tolist()
    pq.write_table(pa.table({"activation_vector": cells}), path)
    return path


@pytest.fixture
def whole(nla, source, tmp_path):
    path = tmp_path / "whole.parquet"
    bulk.run(nla, source, path, **OPTIONS)
    return path


def former(table):
    names = ["score" if name == "reconstruction_cosine" else name for name in table.column_names]
    return table.rename_columns(names)


def test_a_run_that_0_1_began_goes_on_with_the_new_name(nla, source, whole, tmp_path, monkeypatch):
    write, output = ChunkStore.write, tmp_path / "out.parquet"

    def first_only(store, number, parts):
        if number:
            raise KeyboardInterrupt
        return write(store, number, list(map(former, parts)))

    with monkeypatch.context() as patch:
        patch.setattr(ChunkStore, "write", first_only)
        with pytest.raises(KeyboardInterrupt):
            bulk.run(nla, source, output, **OPTIONS)
    report = bulk.run(nla, source, output, **OPTIONS)
    assert report.resumed == 1
    assert "score" not in pq.read_schema(output).names
    assert output.read_bytes() == whole.read_bytes()
    assert pq.read_table(output)["reconstruction_cosine"].null_count == 0


@pytest.mark.parametrize("old", [0, 1])
def test_shards_of_which_one_is_old_merge(nla, source, whole, tmp_path, old):
    paths = [tmp_path / f"{number}.parquet" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        bulk.run(nla, source, path, shard=f"{number}/2", **OPTIONS)
    file = pq.ParquetFile(paths[old])
    note = file.metadata.metadata[b"nnsight_nla.bulk"]
    groups = [former(file.read_row_group(place)) for place in range(file.num_row_groups)]
    with pq.ParquetWriter(paths[old], groups[0].schema) as writer:
        for group in groups:
            writer.write_table(group, row_group_size=len(group))
        writer.add_key_value_metadata({b"nnsight_nla.bulk": note})
    assert "score" in pq.read_schema(paths[old]).names
    assert json.loads(note)["errors"] == 0
    bulk.merge(paths, tmp_path / "merged.parquet")
    merged = tmp_path / "merged.parquet"
    assert merged.read_bytes() == whole.read_bytes()
