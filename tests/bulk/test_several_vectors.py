"""Rows of several vectors each, for a verbalizer with a marker for each of them."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from nnsight_nla import NLA, Checkpoint, Sampling, bulk, tiny

D = 128
TEMPLATE = "<concept>{injection_char}</concept> to <concept>{injection_char}</concept>. Explain."
GENERATOR = torch.Generator().manual_seed(5)
PAIRS = [torch.randn(2, D, generator=GENERATOR) for _ in range(3)]


def described():
    return replace(Checkpoint.load(tiny.paths()["av"]), template=TEMPLATE, vectors=2)


@pytest.fixture(scope="module")
def both():
    return NLA(tiny.paths()["av"], checkpoint=described(), sampling=Sampling(max_new_tokens=4))


def write(path, vectors):
    listed = [None if each is None else each.tolist() for each in vectors]
    column = pa.array(listed, pa.list_(pa.list_(pa.float32())))
    pq.write_table(pa.table({"activation_vectors": column}), path)
    return path


def test_they_are_explained_together_and_the_output_is_an_input(both, tmp_path):
    output, again = tmp_path / "out.parquet", tmp_path / "again.parquet"
    source = write(tmp_path / "in.parquet", PAIRS)
    report = bulk.run(both, source, output, vectors=True, chunk=2)
    rows = pq.read_table(output).to_pylist()
    assert [row["text"] for row in rows] == both.explain(torch.stack(PAIRS)).text
    assert [row["activation_vectors"] for row in rows] == [each.tolist() for each in PAIRS]
    norms = [each.norm(dim=-1).mean().item() for each in PAIRS]
    assert [row["norm"] for row in rows] == pytest.approx(norms)
    assert (report.errors, "question" in rows[0], "activation_vector" in rows[0]) == (0, 0, 0)
    bulk.run(both, output, again, vectors=True, chunk=2)
    assert pq.read_table(again).to_pylist() == rows


def test_another_number_of_them_is_that_rows_error(both, tmp_path):
    odd = [torch.ones(1, D), torch.ones(3, D), torch.ones(2, 5), None, torch.zeros(2, D)]
    source = write(tmp_path / "in.parquet", [*odd, PAIRS[0]])
    bulk.run(both, source, tmp_path / "out.parquet")
    rows = pq.read_table(tmp_path / "out.parquet").to_pylist()
    said = [
        "its vector has shape [128], expected [2, 128]",
        "its vector has shape [3, 128], expected [2, 128]",
        "its vector has 5 numbers, the verbalizer reads 128",
        "it has no vector",
        "its vector number 0 is zero, it has no direction",
    ]
    assert [row["error"] for row in rows] == [*said, None]
    assert rows[-1]["text"] == both.explain(PAIRS[0]).text


def test_labels_for_them(tmp_path):
    source, output = write(tmp_path / "in.parquet", PAIRS), tmp_path / "out.parquet"
    sidecar = described().to_sidecar("av") | {"kind": "nla_dataset"}
    (tmp_path / "in.parquet.nla_meta.yaml").write_text(yaml.safe_dump(sidecar), "utf-8")
    bulk.label(source, output, by=lambda row: str(row["activation_vectors"].shape))
    rows = pq.read_table(output).to_pylist()
    assert {row["api_explanation"] for row in rows} == {"(2, 128)"}
    assert [row["activation_vectors"] for row in rows] == [each.tolist() for each in PAIRS]
