"""The parquet file of a reading: its columns, and files that are something else."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import NLAError
from nnsight_nla.reading import parquet

ROW = {
    "position": 0, "token": "a", "part": "prompt", "explanation": None, "norm": None,
    "reconstruction_cosine": None, "fve": None, "grade": None, "trust": None, "warnings": ("w",),
    "error": None, "grounded": None, "whole": "界", "next_tokens": ["b"],
    "next_probabilities": [0.5], "against": "cosine 0.5", "denominator": None,
}  # fmt: skip
HEADER = {
    "target": "t",
    "verbalizer": "v",
    "layer": 3,
    "receipt": (("site", "block 1"),),
    "code": "nla.read()",
}


@pytest.fixture
def path(tmp_path):
    parquet.write(tmp_path / "reading.parquet", [ROW], HEADER)
    return tmp_path / "reading.parquet"


def test_rows_and_header_come_back(path):
    assert parquet.read(path) == ([{**ROW, "warnings": ["w"]}], HEADER)


def test_the_columns_are_the_published_ones(path):
    schema = pq.read_schema(path)
    text, number = pa.string(), pa.float64()
    assert {field.name: field.type for field in schema} == {
        "position": pa.int64(), "token": text, "part": text, "explanation": text, "norm": number,
        "reconstruction_cosine": number, "fve": number, "grade": text, "trust": text,
        "warnings": pa.list_(text), "error": text, "grounded": text,
        "whole": text, "next_tokens": pa.list_(text), "next_probabilities": pa.list_(number),
        "against": text, "denominator": text,
    }  # fmt: skip
    assert schema.names == list(ROW)
    assert [field.name for field in schema if not field.nullable] == ["position", "token", "part"]
    assert json.loads(schema.metadata[b"nnsight_nla.reading"]) == {
        "format": "nnsight_nla.reading", "version": 2, **HEADER, "receipt": [["site", "block 1"]],
    }  # fmt: skip


def test_a_write_that_stops_in_the_middle_leaves_the_old_file(path, monkeypatch):
    def cut(table, file):
        file.write(b"PAR1")
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", cut)
    with pytest.raises(KeyboardInterrupt):
        parquet.write(path, [], HEADER)
    assert parquet.read(path)[1] == HEADER
    assert [file.name for file in path.parent.iterdir()] == ["reading.parquet"]


def test_a_table_without_a_reading(path):
    pd.DataFrame({"a": [1]}).to_parquet(path)
    with pytest.raises(NLAError, match=r"does not hold a reading \(columns: a\)"):
        parquet.read(path)


def test_a_later_version(path):
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"nnsight_nla.reading"])
    later = {b"nnsight_nla.reading": json.dumps({**note, "version": 9})}
    pq.write_table(table.replace_schema_metadata(later), path)
    with pytest.raises(NLAError, match="is a reading of version 9, this package reads version 2"):
        parquet.read(path)


def test_a_file_of_another_format(path):
    path.write_text("words")
    with pytest.raises(NLAError, match="is not a parquet file"):
        parquet.read(path)


@pytest.mark.parametrize("changed", [{"receipt": 3}, {"receipt": [["a"]]}, {"code": [1]}])
def test_a_header_of_another_form(path, changed):
    table = pq.read_table(path)
    note = json.loads(table.schema.metadata[b"nnsight_nla.reading"]) | changed
    pq.write_table(table.replace_schema_metadata({b"nnsight_nla.reading": json.dumps(note)}), path)
    with pytest.raises(NLAError, match=f"its {next(iter(changed))} is"):
        parquet.read(path)
