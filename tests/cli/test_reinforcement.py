"""``nnsight-nla train rl``: a pair and a file of vectors in, a pair and its figures out."""

import json

import pytest
from typer.testing import CliRunner

from nnsight_nla import NLA, tiny
from nnsight_nla.cli import app
from nnsight_nla.cli.app import command_of, in_flags
from nnsight_nla.errors import NLAError
from nnsight_nla.training import TrainingError
from tests.helpers.tiny_rows import tiny_rows, write_rows

runner = CliRunner()
AV, AR = tiny.paths()["av"], tiny.paths()["ar"]
FEW = ["--steps", "1", "--prompts", "2", "--draws", "4", "--max-new-tokens", "48", "--every", "1"]
FEW += ["--measured", "4", "--held-out", "0.25", "--length-margin", "8"]


@pytest.fixture(scope="module")
def rows(pair, tmp_path_factory):
    found = tiny_rows(pair[0], documents=12, per_document=5)
    return write_rows(found, tmp_path_factory.mktemp("rl") / "rows.parquet")


def run(*arguments):
    found = runner.invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found


def test_it_trains_both_and_prints_one_document(rows, tmp_path):
    command = ["train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path / "rl", *FEW]
    found = json.loads(run(*command, "--json").stdout)
    assert set(found) == {"folder", "av", "ar", "stopped", "log"}
    assert found["stopped"] is None
    assert [line["step"] for line in found["log"]] == [0, 1]
    assert "eval_fve_trained" in found["log"][-1]
    assert NLA(found["av"], ar=found["ar"]).checkpoint.layer == 3
    # The same line again returns what there is.
    assert json.loads(run(*command, "--json").stdout) == found
    assert "loads it" in run(*command).stdout


def test_a_reward_and_a_condition_of_ones_own(rows, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def short(texts, vectors):\n    return [-1.0] * len(texts)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    found = json.loads(
        run(
            "train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path / "rl", *FEW,
            "--freeze-ar", "--reward", "mine:short=0.25", "--stop", "short<0", "--json",
        ).stdout
    )  # fmt: skip
    assert found["ar"] is None
    assert found["stopped"] == "short is -1, below 0"
    assert found["log"][1]["short"] == -1.0
    expected = found["log"][1]["reconstruction"] - 0.25
    if found["log"][1]["extraction"] == 1:
        assert found["log"][1]["reward"] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ("nowhere:short", "--reward nowhere:short: expected module:function of a module that can "),
        ("json:short", "--reward json:short: expected module:function of a module that can be "),
        ("json:dumps=much", "--reward json:dumps=much: expected a number after =, such as "),
        ("json:dumps=nan", "--reward json:dumps=nan: expected a number after =, such as "),
    ],
)
def test_a_reward_that_cannot_be_imported_is_refused(rows, tmp_path, reward, message):
    with pytest.raises(NLAError) as caught:
        run("train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path, "--reward", reward)
    assert str(caught.value).startswith(message)


def test_messages_name_flags(rows, tmp_path):
    assert command_of(["train", "rl", "rows"]) == "train rl"
    assert command_of(["train", "av", "rows"]) == "train"
    message = "Lower av_rate (now 0.1), or RLSettings(reconstructor='freeze'). out='x'"
    assert in_flags(message, "train rl") == "Lower av_rate (now 0.1), or --freeze-ar. --out 'x'"
    with pytest.raises(TrainingError) as caught:
        run(
            "train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path / "rl", *FEW,
            "--best", "truth",
        )  # fmt: skip
    said = in_flags(str(caught.value), "train rl")
    assert said.startswith("--best 'truth' is not measured in this training. Expected one of ")


def test_one_text_per_vector_is_refused(rows, tmp_path):
    with pytest.raises(TrainingError, match="a group of one has nothing to compare"):
        run("train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path / "rl", "--draws", "1")


def test_options_of_vllm_are_a_json_object(rows, tmp_path):
    command = ["train", "rl", rows, "--av", AV, "--ar", AR, "--out", tmp_path / "rl", *FEW]
    for given in ("4", "{gpu: 1}"):
        with pytest.raises(NLAError) as caught:
            run(*command, "--engine", "vllm", "--lora", "4", "--vllm", given)
        assert str(caught.value) == (
            f"--vllm {given!r}: expected a JSON object, such as "
            "'{\"gpu_memory_utilization\": 0.4}'."
        )
    with pytest.raises(TrainingError, match="hands vLLM an adapter before each step"):
        run(*command, "--engine", "vllm")
