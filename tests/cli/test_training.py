"""``nnsight-nla train`` and ``evaluate``: a file in, a checkpoint and its figures out."""

import json

import pytest
import torch
from typer.testing import CliRunner

from nnsight_nla import NLA
from nnsight_nla.cli import app
from nnsight_nla.errors import NLAError
from nnsight_nla.tiny import paths
from nnsight_nla.training import TrainingError
from nnsight_nla.training.measuring import measure
from tests.helpers.published import base, publish, records

runner = CliRunner()
COMMAND = ["--steps", "2", "--batch-size", "4", "--every", "2", "--measured", "2"]
COMMAND += ["--max-new-tokens", "6", "--held-out", "0.25", "--warmup", "0", "--json"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    base(folder / "base")
    publish(folder / "rows.parquet", records())
    return folder


def run(*arguments):
    found = runner.invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found


@pytest.fixture(scope="module")
def made(folder):
    options = ["--base", folder / "base", *COMMAND]
    logs = {}
    for half, name, more in (("ar", "ar", []), ("av", "av", []), ("av", "lora", ["--lora", "4"])):
        found = run("train", half, folder / "rows.parquet", "--out", folder / name, *options, *more)
        logs[name] = json.loads(found.stdout)
    return logs


def test_train_writes_checkpoints_that_load(folder, made):
    assert made["av"]["folder"] == str(folder / "av")
    assert [set(line) for line in made["av"]["log"]][-1] == {"step", "eval_loss", "eval_extraction"}
    for name in ("av", "lora"):
        nla = NLA(folder / name, ar=folder / "ar", dtype=torch.float32)
        assert nla.score("About Paris.", torch.randn(32)).fve is not None


def test_evaluate_two_side_by_side(folder, made):
    rows = folder / "rows.parquet"
    command = ["evaluate", folder / "av", rows, "--ar", folder / "ar", "--against", folder / "lora"]
    command += ["--held-out", "0.25", "--max-new-tokens", "6", "--dtype", "float32"]
    found = json.loads(run(*command, "--json").stdout)["checkpoints"]
    assert list(found) == [str(folder / "av"), str(folder / "lora")]
    for figures in found.values():
        # Untrained: no reply has its tags in six tokens, and what failed counts as a cosine of 0.
        assert figures["extraction"] == 0
        assert figures["truncated"] == 1
        assert figures["cosine"]["explanation"] == 0
        assert set(figures["fve"]) == {"explanation", "label", "null", "random", "shuffled"}
        assert figures["baseline"]["name"] == "block 1 in rows.parquet"
        assert figures["fve"]["null"] == pytest.approx(1 - 2 / figures["baseline"]["value"])
        assert figures["retrieval"] == 0
        assert figures["says"]["explanation"] != figures["says"]["null"] < 0
    said = [figures["says"]["explanation"] for figures in found.values()]
    assert said[0] != said[1]
    table = run(*command).stdout
    assert "its vector" in table
    assert "FVE over" in table


def test_evaluate_refuses_what_was_trained_on(folder, made):
    rows, name = folder / "rows.parquet", str(folder / "av")
    pairs = {name: NLA(name)}
    with pytest.raises(TrainingError) as caught:
        measure(rows, pairs, held_out=0.5)
    assert str(caught.value) == (
        f"{name} was trained on rows.parquet with 0.25 of the documents held out; measured on 0.5 "
        "of them it would be measured on what it has seen. Type --held-out 0.25."
    )
    with pytest.raises(NLAError, match=r"at least two are needed\. Hold out more"):
        measure(rows, pairs, held_out=0.25, limit=1)


def test_the_shipped_pair_by_the_same_command(tmp_path, pair):
    """The figures tell a verbalizer that reads its vector from one that does not."""
    from dataclasses import replace

    import pyarrow as pa
    import pyarrow.parquet as pq
    import yaml

    from nnsight_nla.tiny.examples import collect
    from nnsight_nla.tiny.facts import held_out_pairs

    model, nla = pair
    held = collect(model, sorted(held_out_pairs()), documents=12, per_document=2, seed=3)
    rows = [
        {"activation_vector": vector.tolist(), "api_explanation": text, "doc_id": i // 2}
        for i, (vector, text) in enumerate(zip(held.vectors, held.explanations, strict=True))
    ]
    file = tmp_path / "held.parquet"
    pq.write_table(pa.Table.from_pylist(rows), file)
    tree = replace(nla.checkpoint, baseline=None).to_sidecar("av") | {"kind": "nla_dataset"}
    file.with_name("held.parquet.nla_meta.yaml").write_text(yaml.safe_dump(tree), "utf-8")
    base = measure(file, {str(paths()["av"]): nla}, held_out=1.0)
    (figures,) = base.values()
    fve, says = figures["fve"], figures["says"]
    assert figures["rows"] == 24
    assert (figures["extraction"], figures["truncated"]) == (1, 0)
    assert fve["label"] > 0.85
    assert fve["explanation"] > 0.85
    assert max(fve["null"], fve["random"], fve["shuffled"]) < 0.2
    assert figures["retrieval"] > 0.85
    assert says["explanation"] > -0.3
    assert max(says["null"], says["random"], says["shuffled"]) < says["explanation"] - 0.5
    assert figures["baseline"]["name"].startswith("block 3 in texts of")
