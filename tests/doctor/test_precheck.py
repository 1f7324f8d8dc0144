"""What keeps a prompt from being rendered is found without any weights."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from nnsight_nla import Checkpoint, tiny
from nnsight_nla.cli import app
from nnsight_nla.doctor.precheck import check
from nnsight_nla.doctor.report import Finding

AV = tiny.paths()["av"]


def _sidecar(tmp_path: Path, change) -> Path:
    """A copy of the tiny verbalizer's folder without weights, its sidecar changed."""
    folder = tmp_path / "av"
    shutil.copytree(AV, folder, ignore=shutil.ignore_patterns("*.safetensors", "nla_cal*"))
    file = folder / "nla_meta.yaml"
    tree = yaml.safe_load(file.read_text("utf-8"))
    change(tree)
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return folder


STATIC = [
    ("sidecar", lambda tree: tree["extraction"].update(norm="whitened"), "norm is 'whitened'"),
    (
        "sidecar",
        lambda tree: tree["prompt_templates"].update(av="no slot"),
        "contains {injection_char} 0 times",
    ),
    ("marker", lambda tree: tree["tokens"].update(injection_token_id=7), "says id 1492 between 32"),
    (
        "marker",
        lambda tree: tree["tokens"].update(injection_left_neighbor_id=9),
        "says id 1492 between 32 and 303",
    ),
    (
        "template",
        lambda tree: tree["prompt_templates"].update(av="㈎ {injection_char}"),
        "in the verbalizer's prompt, found 0",
    ),
    ("tokenizer", lambda tree: tree["tokens"].update(injection_char="㊙"), "tokenizes to"),
]


@pytest.mark.parametrize(("setting", "change", "words"), STATIC)
def test_what_cannot_be_rendered_is_named_before_any_weights(tmp_path, setting, change, words):
    folder = _sidecar(tmp_path, change)
    finding = check(folder)
    assert isinstance(finding, Finding)
    assert (finding.setting, finding.verdict) == (setting, "fails")
    assert words in finding.note
    ran = CliRunner().invoke(app, ["doctor", str(folder), "--json"])
    assert ran.exit_code == 1
    told = json.loads(ran.stdout)
    assert (told["ok"], told["broken"], told["checkpoint"]) == (False, [setting], None)
    assert told["conclusion"].startswith(f"The {setting} cannot be used: ")


def test_a_sound_checkpoint_can_be_rendered():
    assert check(AV) is None


def test_a_checkpoint_that_is_passed_replaces_the_sidecar():
    declared = Checkpoint.load(AV)
    assert check(AV, declared) is None
    finding = check(AV, replace(declared, marker="a"))
    assert (finding.setting, finding.verdict) == ("marker", "fails")


def test_a_missing_tokenizer_is_named(tmp_path):
    folder = _sidecar(tmp_path, lambda tree: tree["extraction"].update(base_model="no/where"))
    for file in folder.glob("tokenizer*"):
        file.unlink()
    finding = check(folder)
    assert (finding.setting, finding.verdict) == ("tokenizer", "fails")
    assert "No tokenizer for" in finding.note


def test_a_folder_that_does_not_exist(tmp_path):
    finding = check(tmp_path / "nowhere")
    assert (finding.setting, finding.verdict) == ("sidecar", "fails")
    assert "nowhere" in finding.note
