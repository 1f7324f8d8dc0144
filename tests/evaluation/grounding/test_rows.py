"""Rows with their texts, from records and from files that are larger than they seem."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nnsight_nla import NLAError
from nnsight_nla.evaluation.grounding import rows as module
from nnsight_nla.evaluation.grounding.rows import (
    GroundedRow,
    GroundedRows,
    from_records,
    has_texts,
    read_rows,
)


def record(text, document="a", vector=(1.0, 2.0), **more):
    return {
        "activation_vector": list(vector),
        "detokenized_text_truncated": text,
        "doc_id": document,
        **more,
    }


def write(file, records, **options):
    pq.write_table(pa.Table.from_pylist(records), file, **options)
    return file


def test_the_rest_of_a_document_comes_from_its_longest_row():
    found = from_records([record("The bees"), record("The bees fly home"), record("A cow", "b")])
    assert [row.rest for row in found.rows] == [" fly home", "", ""]
    assert [row.document for row in found.rows] == ["a", "a", "b"]


def test_a_text_that_does_not_begin_the_longest_one_has_no_rest():
    found = from_records([record("The  bees"), record("The bees fly home")])
    assert found.rows[0].rest == ""


def test_everything_that_a_record_has_is_kept():
    more = {"position": 7, "next_tokens": [" in", "."], "next_probabilities": [0.5, 0.25]}
    found = from_records([record("é\u2028😀", 3, api_explanation="About.", **more)], "mine")
    assert found.rows[0] == GroundedRow(
        "3", "é\u2028😀", "", 7, (" in", "."), (0.5, 0.25), "About."
    )
    assert found.name == "mine"
    assert torch.equal(found.vectors, torch.tensor([[1.0, 2.0]]))


def test_a_row_without_a_document_is_a_document_of_its_own(tmp_path):
    records = [record("The bees", None), record("The bees fly", None), record("The", "None")]
    found = from_records(records)
    assert len(found.by_document) == 3
    assert [row.rest for row in found.rows] == ["", "", ""]
    for each in records:
        del each["doc_id"]
    read = read_rows(write(tmp_path / "rows.parquet", records), [2, 1])
    assert len(read.by_document) == 2
    assert read.rows[0].document != from_records(records).rows[0].document
    assert [row.rest for row in read.rows] == ["", ""]


@pytest.mark.parametrize("column", ["activation_vector", "detokenized_text_truncated"])
def test_a_record_without_vector_or_text_is_named(column):
    with pytest.raises(NLAError, match=rf"^Row 1 of x has no '{column}'.*this row has .*doc_id"):
        from_records([record("a"), {**record("b"), column: None}], "x")


@pytest.mark.parametrize("vector", [[1.0], ["a", "b"], [[1.0], [2.0]], [{}, {}]])
def test_vectors_of_other_widths_and_kinds_are_refused(vector):
    with pytest.raises(NLAError, match="The vectors of these rows are not numbers of one width"):
        from_records([record("a"), record("b", vector=vector)])


def test_there_is_a_text_for_each_vector():
    with pytest.raises(NLAError, match="Got 1 texts for 2 vectors"):
        GroundedRows((GroundedRow("a", "b"),), torch.zeros(2, 4))
    assert len(from_records([])) == 0
    assert len(from_records([]).take([])) == 0


def test_rows_of_a_document_are_sorted_by_their_length_and_taken_in_any_order():
    found = from_records(
        [record("abc", vector=(3, 0)), record("a", vector=(1, 0)), record("ab", vector=(2, 0))]
    )
    assert found.by_document == {"a": [1, 2, 0]}
    part = found.take([2, 0, 2])
    assert [row.text for row in part.rows] == ["ab", "abc", "ab"]
    assert part.vectors[:, 0].tolist() == [2, 3, 2]
    assert part.by_document == {"a": [0, 2, 1]}


@pytest.fixture
def file(tmp_path):
    records = [
        record("w " * (i % 50 + 1), f"d{i // 50}", (i, -i), position=i % 50) for i in range(3000)
    ]
    return write(tmp_path / "rows.parquet", records, row_group_size=700)


def test_some_rows_of_a_file_are_as_among_all(file):
    everything = read_rows(file)
    assert (len(everything), everything.name) == (3000, "rows.parquet")
    for numbers in ([2999, 0, 1500, 0], list(range(690, 710)), []):
        part = read_rows(file, numbers)
        assert part.rows == tuple(everything.rows[n] for n in numbers)
        if numbers:
            assert torch.equal(part.vectors, everything.vectors[numbers])
    assert everything.rows[0].rest == "w " * 49
    assert torch.equal(everything.vectors[:, 0], torch.arange(3000.0))


def test_only_the_row_groups_that_are_asked_for_are_read(file, monkeypatch):
    read: list[tuple[int, bool]] = []
    original = pq.ParquetFile.iter_batches

    def spy(self, size, *, row_groups, columns):
        read.extend((group, module.VECTOR in columns) for group in row_groups)
        for batch in original(self, size, row_groups=row_groups, columns=columns):
            assert batch.num_rows <= 1024
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    monkeypatch.setattr(pq, "read_table", None)
    read_rows(file, [1500])
    assert {group for group, vectors in read if vectors} == {2}


@pytest.mark.parametrize("number", [-1, 3000, 10**12])
def test_a_row_that_is_not_in_the_file_is_named(file, number):
    with pytest.raises(NLAError, match=rf"has 3,000 rows, counted from 0, and no row {number}"):
        read_rows(file, [0, number])


@pytest.mark.parametrize("kind", ["float16", "fixed", "large", "tensor", "string"])
def test_vectors_of_every_list_type_are_read(tmp_path, kind):
    values = [[1.5, 2.0], [3.0, -4.0]]
    vectors = {
        "float16": lambda: pa.array(
            [np.array(each, np.float16) for each in values], pa.list_(pa.float16())
        ),
        "fixed": lambda: pa.array(values, pa.list_(pa.float64(), 2)),
        "large": lambda: pa.array(values, pa.large_list(pa.float32())),
        "tensor": lambda: pa.FixedShapeTensorArray.from_numpy_ndarray(np.array(values)),
        "string": lambda: pa.array(map(json.dumps, values)),
    }[kind]()
    table = pa.table({"activation_vector": vectors, "detokenized_text_truncated": ["a", "ab"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    if kind == "string":
        with pytest.raises(NLAError, match=r"Row 0 of rows.parquet has no 'activation_vector'"):
            read_rows(tmp_path / "rows.parquet")
    else:
        assert read_rows(tmp_path / "rows.parquet").vectors.tolist() == values
        assert read_rows(tmp_path / "rows.parquet", [1]).vectors.tolist() == values[1:]


def test_nan_vectors_are_read_as_they_are(tmp_path):
    found = read_rows(write(tmp_path / "x", [record("a", vector=(float("nan"), 1.0))]))
    assert found.vectors.isnan().tolist() == [[True, False]]


def test_a_file_without_texts_or_rows_or_parquet_is_refused(tmp_path):
    plain = write(tmp_path / "plain.parquet", [{"activation_vector": [1.0], "doc_id": "a"}])
    with pytest.raises(NLAError, match=r"no column 'detokenized_text_truncated'.*has activation_v"):
        read_rows(plain)
    assert not has_texts(plain)
    assert has_texts(write(tmp_path / "rows.parquet", [record("a")]))
    (tmp_path / "junk").write_bytes(b"junk" * 10)
    for name in ("junk", "lost"):
        with pytest.raises(NLAError, match=f"{name} cannot be read as Parquet"):
            read_rows(tmp_path / name)
    empty = pa.Table.from_pylist([record("a")]).slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert len(read_rows(tmp_path / "empty.parquet")) == 0
