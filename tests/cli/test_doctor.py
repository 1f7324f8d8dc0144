"""``nnsight-nla doctor``: its table, its JSON and its exit codes."""

import json
import shutil

import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from nnsight_nla import cli, tiny
from nnsight_nla.cli import app
from nnsight_nla.doctor import examine

FOLDERS = {name: str(path) for name, path in tiny.paths().items()}


@pytest.fixture(autouse=True)
def few_texts(monkeypatch):
    """Three texts are enough to tell the tiny pair's settings apart."""
    monkeypatch.setattr(examine, "TEXTS", examine.TEXTS[:3])


def test_the_command_line_prints_a_table_and_exits_zero(monkeypatch):
    monkeypatch.setattr(cli.doctor, "out", Console(width=140))
    command = ["doctor", FOLDERS["av"], "--target", FOLDERS["target"], "--ar", FOLDERS["ar"]]
    ran = CliRunner().invoke(app, [*command, "--max-new-tokens", "60"])
    assert ran.exit_code == 0, ran.output
    for word in ("injection layer", "block 4", "supported", "AR cosine", "No alternative"):
        assert word in ran.stdout


def test_the_command_line_exits_one_when_the_declared_one_loses(tmp_path):
    # The calibration is that of the checkpoint as it ships.
    others = shutil.ignore_patterns("nla_calibration.json")
    folder = shutil.copytree(FOLDERS["av"], tmp_path / "av", ignore=others)
    sidecar = folder / "nla_meta.yaml"
    tree = yaml.safe_load(sidecar.read_text("utf-8"))
    tree["training"]["injection_layer"] = 3
    sidecar.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    command = ["doctor", str(folder), "--target", FOLDERS["target"], "--ar", FOLDERS["ar"]]
    ran = CliRunner().invoke(app, [*command, "--max-new-tokens", "60", "--json"])
    assert ran.exit_code == 1, ran.output
    told = json.loads(ran.stdout)
    assert told["broken"] == ["injection layer"]
    assert told["checkpoint"]["injection"]["layer"] == 1
    losing = next(each for each in told["findings"] if each["setting"] == "injection layer")
    assert (losing["verdict"], losing["best"]) == ("loses", "block 1")
