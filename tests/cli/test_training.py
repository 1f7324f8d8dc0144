"""``nnsight-nla train`` and ``evaluate``: a file in, a checkpoint and its figures out."""

import json

import pytest
import torch
from typer.testing import CliRunner

from nnsight_nla import NLA
from nnsight_nla.cli import app
from nnsight_nla.cli.app import in_flags
from nnsight_nla.errors import NLAError
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
    for role, name, more in (("ar", "ar", []), ("av", "av", []), ("av", "lora", ["--lora", "4"])):
        found = run("train", role, folder / "rows.parquet", "--out", folder / name, *options, *more)
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
    assert "FVE (denominator" in table


def test_evaluate_refuses_rows_of_another_model_or_block_unless_told(folder, made):
    for name, place, value in (
        ("model", "extraction.base_model", "Some/OtherModel"),
        ("kind", "extraction.kind", "difference"),
    ):
        rows = publish(folder / f"{name}.parquet", records(), sidecar={place: value})
        pairs = {str(folder / "av"): NLA(folder / "av")}
        with pytest.raises(TrainingError, match=rf"does not hold .*{name} \(.*is {value}"):
            measure(rows, pairs, held_out=0.25)
        command = ["evaluate", folder / "av", rows, "--held-out", "0.25", "--insist", "--json"]
        found = json.loads(run(*command, "--max-new-tokens", "2").stdout)["checkpoints"]
        (ignored,) = found[str(folder / "av")]["claims_ignored"]
        assert f"is {value}, expected" in ignored


def test_evaluate_refuses_what_was_trained_on(folder, made):
    rows, name = folder / "rows.parquet", str(folder / "av")
    pairs = {name: NLA(name)}
    with pytest.raises(TrainingError) as caught:
        measure(rows, pairs, held_out=0.5)
    assert str(caught.value) == (
        f"{name} was trained on rows.parquet with 0.25 of the documents held out, so a share of "
        "0.5 includes documents that it was trained on. Pass held_out=0.25."
    )
    with pytest.raises(NLAError, match=r"has 1 rows, and at least two are needed.*Hold out more"):
        measure(rows, pairs, held_out=0.25, limit=1)


def test_a_training_is_continued_and_saved_as_it_was_asked_for(folder):
    from safetensors.torch import load_file

    out = folder / "continued"
    command = ["train", "av", folder / "rows.parquet", "--out", out, "--base", folder / "base"]
    command += [*COMMAND, "--lora", "2", "--attention", "eager", "--save-dtype", "bfloat16"]
    steps = ["--steps", "4"]
    first = json.loads(run(*command, "--keep-state").stdout)
    assert first["log"][-1]["step"] == 2
    second = json.loads(run(*command, *steps).stdout)
    assert second["log"][-1]["step"] == 4
    assert json.loads(run(*command, *steps).stdout) == second
    saved = load_file(out / "adapter_model.safetensors")
    assert {each.dtype for each in saved.values()} == {torch.bfloat16}
    with pytest.raises(TrainingError) as caught:
        run(*command, "--steps", "6")
    assert in_flags(str(caught.value), "train").endswith(
        "so it cannot be continued. Choose another --out. To continue a finished training later, "
        "keep its state: --keep-state."
    )
    with pytest.raises(TrainingError) as caught:
        run(*command, "--save-dtype", "float23")
    said = in_flags(str(caught.value), "train")
    assert said == "--save-dtype 'float23': expected one of float32, bfloat16, float16."
