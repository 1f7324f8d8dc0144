"""Vectors that say what they are: every reader looks, and every output says it on."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from typer.testing import CliRunner

from nnsight_nla import NLA, NLAError, NLAWarning, Origin, Sampling, bulk, cli, tiny
from nnsight_nla.bulk.sources import open_source
from nnsight_nla.cli.app import in_flags

SHORT = Sampling(max_new_tokens=2)
VECTORS = torch.randn(3, 128, generator=torch.Generator().manual_seed(3))
CLAIMS = {
    "model": ("Some/OtherModel", "nnsight_nla/tiny/weights/target"),
    "layer": (1, 3),
    "d_model": (64, 128),
    "norm": ("whitened", "none"),
}
KEYS = {"model": "base_model", "layer": "layer_index"}


def rows(path):
    return pq.read_table(path).to_pylist()


def sidecar(path):
    return yaml.safe_load(path.with_name(f"{path.name}.nla_meta.yaml").read_text("utf-8"))


def by_sidecar(folder, name, value, *, matrix):
    path = folder / ("a.npy" if matrix else "a.parquet")
    if matrix:
        np.save(path, VECTORS.numpy())
    else:
        pq.write_table(pa.table({"activation_vector": VECTORS.tolist()}), path)
    tree = {"extraction": {KEYS.get(name, name): value}}
    path.with_name(f"{path.name}.nla_meta.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    return path


def by_metadata(folder, name, value, *, matrix):
    held = {KEYS.get(name, name): str(value)}
    if matrix:
        save_file({"W": VECTORS}, folder / "a.safetensors", metadata=held)
        return folder / "a.safetensors"
    table = pa.table({"activation_vector": VECTORS.tolist()}).replace_schema_metadata(held)
    pq.write_table(table, folder / "a.parquet")
    return folder / "a.parquet"


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("matrix", [False, True])
@pytest.mark.parametrize("write", [by_sidecar, by_metadata])
def test_run_refuses_other_vectors_and_an_insisted_output_says_so(
    nla, tmp_path, write, name, matrix
):
    value, expected = CLAIMS[name]
    path, output = write(tmp_path, name, value, matrix=matrix), tmp_path / "out.parquet"
    with pytest.raises(NLAError) as caught:
        bulk.run(nla, path, output, sampling=SHORT, score=False)
    assert f"is {value}, expected {expected}" in str(caught.value)
    assert str(caught.value).startswith(f"{path.name} does not hold the vectors")
    assert list(tmp_path.glob("out*")) == []
    report = bulk.run(nla, path, output, sampling=SHORT, score=False, claims="ignore", vectors=True)
    assert f"is {value}, expected {expected}" in str(report)
    tree = sidecar(output)
    assert Origin.from_sidecar(tree, "").to_dict()[name] == value
    assert len(tree["claims_ignored"]) == len(tree["bulk"]["claims"]["ignored"]) == 1
    for row in rows(output):
        assert f"is {value}, expected {expected}" in row["warnings"][0]
    # What was written is refused in turn, with its sidecar and without.
    for _ in range(2):
        with pytest.raises(NLAError, match=r"out\.parquet does not hold the vectors"):
            bulk.run(nla, output, tmp_path / "again.parquet", sampling=SHORT, score=False)
        output.with_name("out.parquet.nla_meta.yaml").unlink(missing_ok=True)


def test_a_right_claim_is_passed_on_and_silence_claims_nothing(nla, tmp_path):
    path = by_sidecar(tmp_path, "layer", 3, matrix=True)
    for claimed in (True, False):
        output = tmp_path / f"{claimed}.parquet"
        bulk.run(nla, path, output, sampling=SHORT, score=False)
        tree = sidecar(output)
        assert tree["extraction"]["layer_index"] == 3
        assert Origin.from_sidecar(tree, "") == Origin(layer=3 if claimed else None)
        assert "claims_ignored" not in tree
        path.with_name("a.npy.nla_meta.yaml").unlink(missing_ok=True)


def test_a_direction_is_explained_with_a_warning(nla, tmp_path):
    path, output = by_metadata(tmp_path, "kind", "direction", matrix=True), tmp_path / "o.parquet"
    bulk.run(nla, path, output, sampling=SHORT, score=False)
    assert sidecar(output)["extraction"]["kind"] == "direction"
    note = "its vector is a direction, and the verbalizer was trained on residuals"
    assert {row["warnings"][0] for row in rows(output)} == {note}


def test_rows_of_several_layers_are_refused_one_by_one(nla, tmp_path):
    columns = {"activation_vector": VECTORS.tolist(), "activation_layer": [3, 1, None]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    lines = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for name in ("a.parquet", "a.jsonl"):
        bulk.run(nla, tmp_path / name, tmp_path / f"{name}.out", sampling=SHORT, score=False)
        errors = [row["error"] for row in rows(tmp_path / f"{name}.out")]
        assert errors[0] is errors[2] is None
        assert f"layer (column activation_layer of {name}) is 1, expected 3" in errors[1]
        insisted = tmp_path / f"{name}.insisted"
        bulk.run(nla, tmp_path / name, insisted, sampling=SHORT, score=False, claims="ignore")
        found = rows(insisted)
        assert [row["error"] for row in found] == [None] * 3
        assert ["is 1, expected 3" in " ".join(row["warnings"]) for row in found] == [
            False, True, False,
        ]  # fmt: skip
    pq.write_table(pa.table({**columns, "activation_layer": [1] * 3}), tmp_path / "b.parquet")
    with pytest.raises(NLAError, match=r"column activation_layer of b\.parquet\) is 1, expected 3"):
        bulk.run(nla, tmp_path / "b.parquet", tmp_path / "b.out", sampling=SHORT)


def corpus(folder):
    path = folder / "in.jsonl"
    path.write_text('{"text": "People in Paris speak"}\n')
    return path


def test_residuals_of_another_target_are_refused_and_named(model, nla, tmp_path):
    other = NLA(nla.av, checkpoint=replace(nla.checkpoint, base_model="Some/OtherModel"))
    source, output = corpus(tmp_path), tmp_path / "out.parquet"
    options = {"model": model, "positions": "last", "sampling": SHORT}
    with pytest.raises(
        NLAError, match=r"The residual stream of .*target does not hold.*Some/Other"
    ):
        bulk.run(other, source, output, **options)
    with pytest.raises(
        NLAError, match=r"The residual stream of .*target does not hold.*Some/Other"
    ):
        bulk.extract(model, source, output, checkpoint=other.checkpoint)
    with pytest.warns(NLAWarning, match="trained on the residuals of Some/OtherModel"):
        bulk.run(other, source, output, claims="ignore", **options)
    bulk.extract(
        model, source, tmp_path / "rows.parquet", checkpoint=other.checkpoint, claims="ignore"
    )
    for path in (output, tmp_path / "rows.parquet"):
        origin = Origin.from_sidecar(sidecar(path), "")
        assert (origin.model, origin.layer, origin.kind) == ("target", 3, "residual")
        assert "is " in sidecar(path)["claims_ignored"][0]


def test_what_is_read_here_names_model_block_norm_kind_and_configuration(model, nla, tmp_path):
    bulk.extract(model, corpus(tmp_path), tmp_path / "r.parquet", checkpoint=nla.checkpoint)
    origin = Origin.from_sidecar(sidecar(tmp_path / "r.parquet"), "")
    expected = Origin.of(nla.checkpoint)
    assert replace(origin, config=None) == expected
    assert origin.config is not None
    bulk.label(tmp_path / "r.parquet", tmp_path / "l.parquet", by=lambda row: "A text.")
    assert Origin.from_sidecar(sidecar(tmp_path / "l.parquet"), "") == origin
    assert open_source(tmp_path / "l.parquet").origin == origin


def test_a_copy_of_the_target_under_another_name_is_the_target(nla, tmp_path):
    from nnsight import TransformersModel

    cached = tmp_path / "models--nnsight--target" / "snapshots" / "0123abc"
    shutil.copytree(tiny.paths()["target"], cached)
    named = NLA(nla.av, checkpoint=replace(nla.checkpoint, base_model="nnsight/target"))
    model = TransformersModel(str(cached), task="text-generation")
    named.layer(model)  # A warning would be an error.
    report = bulk.run(
        named, corpus(tmp_path), tmp_path / "o.parquet", model=model, positions="last",
        sampling=SHORT,
    )  # fmt: skip
    assert (report.rows, report.ignored) == (1, ())
    assert sidecar(tmp_path / "o.parquet")["extraction"]["base_model"] == "nnsight/target"


def test_the_command_line_insists_and_names_the_column(tmp_path):
    pq.write_table(pa.table({"resid": VECTORS[:1].tolist(), "layer": [1]}), tmp_path / "a.parquet")
    command = ["run", str(tmp_path / "a.parquet"), str(tmp_path / "o.parquet"), "--json"]
    command += ["--max-new-tokens", "2", "--no-score"]
    runner = CliRunner()
    found = runner.invoke(cli.app, command)
    assert "no column 'text'; it has 'resid', 'layer'" in str(found.exception)
    assert in_flags(str(found.exception), "run").endswith("read: --vector-column 'resid'.")
    command += ["--vector-column", "resid"]
    found = runner.invoke(cli.app, command)
    assert in_flags(str(found.exception), "run").endswith("all the same, pass --insist.")
    found = runner.invoke(cli.app, [*command, "--insist"])
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["ignored"] == [
        "layer (column layer of a.parquet) is 1, expected 3"
    ]
