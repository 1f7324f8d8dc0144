"""Vectors in every Arrow type that holds numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nnsight_nla import bulk
from nnsight_nla.bulk.sources import open_source
from nnsight_nla.training import Published

ROWS = np.arange(12, dtype=np.float32).reshape(3, 4)
LISTS = ROWS.tolist()
TENSORS = pa.FixedShapeTensorArray.from_numpy_ndarray
NUMBERS = (pa.float16(), pa.float32(), pa.float64(), pa.int8(), pa.uint16(), pa.int64())
GOOD = {
    **{f"list of {kind}": pa.array(ROWS.astype(int).tolist(), pa.list_(pa.int64())).cast(
        pa.list_(kind)) for kind in NUMBERS},
    "large list": pa.array(LISTS, pa.large_list(pa.float32())),
    "fixed-size list": pa.array(LISTS, pa.list_(pa.float32(), 4)),
    "list view": pa.array(LISTS, pa.list_view(pa.float32())),
    "large list view": pa.array(LISTS, pa.large_list_view(pa.float64())),
    "decimal": pa.array(LISTS, pa.list_(pa.float64())).cast(pa.list_(pa.decimal128(8, 2))),
    "tensor": TENSORS(ROWS),
    "tensor of one row": TENSORS(ROWS.reshape(3, 1, 4)),
    "list of one list": pa.array([[row] for row in LISTS]),
}  # fmt: skip


def written(folder, column):
    pq.write_table(pa.table({"activation_vector": column}), folder / "a.parquet")
    return folder / "a.parquet"


def items(path):
    return [item for _, found in open_source(path).chunks(2, lambda _: True) for item in found]


@pytest.mark.parametrize("name", GOOD)
def test_every_type_gives_the_same_vectors(tmp_path, name):
    found = items(written(tmp_path, GOOD[name]))
    assert [item.error for item in found] == [None] * 3
    assert np.array_equal(np.stack([item.value for item in found]), ROWS)
    assert found[0].value.dtype == np.float32


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (
            TENSORS(np.ones((3, 2, 2, 2), dtype=np.float32)),
            "its vector has shape [2, 2, 2], expected one axis",
        ),
        (pa.array([[[1.0], [2.0, 3.0]]] * 3), "its vector is not a list of numbers"),
        (pa.array([None] * 3, pa.list_(pa.float32())), "it has no vector"),
    ],
)
def test_what_is_no_vector_is_a_rows_error(tmp_path, column, message):
    assert [item.error for item in items(written(tmp_path, column))] == [message] * 3


def test_a_missing_number_is_found_when_it_is_explained(tmp_path):
    (item,) = items(written(tmp_path, pa.array([[1.0, None]], pa.list_(pa.float32()))))
    assert np.isnan(item.value).tolist() == [False, True]


@pytest.mark.parametrize("name", ["tensor", "large list", "fixed-size list"])
def test_labels_and_training_read_them_too(tmp_path, name):
    path = written(tmp_path, GOOD[name])
    path.with_name("a.parquet.nla_meta.yaml").write_text(
        "{kind: nla_dataset, extraction: {layer_index: 3}, d_model: 4}"
    )
    bulk.label(path, tmp_path / "out.parquet", by=lambda row: f"{row['activation_vector'][0]:g}")
    assert pq.read_table(tmp_path / "out.parquet")["api_explanation"].to_pylist() == ["0", "4", "8"]
    for file in (path, tmp_path / "out.parquet"):
        (vectors,) = Published(file).vectors(4)
        assert np.array_equal(vectors.numpy(), ROWS)
