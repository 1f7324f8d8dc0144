"""The same files have the same fingerprint wherever they lie, and other ones another."""

import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nnsight_nla.checkpoint import sidecar
from nnsight_nla.models import fingerprint
from nnsight_nla.models.adapter import AdapterModel
from nnsight_nla.models.fingerprint import fingerprint_file, fingerprint_model


def test_a_file_is_known_by_its_name_and_its_content(tmp_path):
    (tmp_path / "a").mkdir()
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "v.npy").write_bytes(b"some")
    found = fingerprint_file(tmp_path / "v.npy")
    assert found == fingerprint_file(tmp_path / "a" / "v.npy")
    assert (found["name"], found["bytes"]) == ("v.npy", 4)
    (tmp_path / "v.npy").write_bytes(b"same")
    assert found["blake2b"] != fingerprint_file(tmp_path / "v.npy")["blake2b"]


def test_a_model_from_a_folder_is_known_by_its_files(model, tmp_path, monkeypatch):
    copy = tmp_path / "target"
    shutil.copytree(model.repo_id, copy)
    here = fingerprint_model(model)
    monkeypatch.setattr(model, "repo_id", str(copy))
    there = fingerprint_model(model)
    assert there["weights"] == here["weights"]
    assert (there["name"], there["dtype"]) == ("target", "float32")
    # Large files are read in parts, which still reach every large matrix.
    monkeypatch.setattr(fingerprint, "_DENSE", 0)
    monkeypatch.setattr(fingerprint, "_STRIDE", 1 << 16)
    sparse = fingerprint_model(model)["weights"]
    weights = next(copy.glob("*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(bytes(content))
    assert fingerprint_model(model)["weights"] != sparse


def test_an_adapter_is_known_by_its_own_files_and_its_base(model, tmp_path, monkeypatch):
    found = []
    for number in range(2):
        base = AutoModelForCausalLM.from_pretrained(model.repo_id)
        lora = LoraConfig(r=1, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(base, lora).save_pretrained(tmp_path / str(number))
        found.append(fingerprint_model(AdapterModel(model, tmp_path / str(number))))
    assert [(each["name"], each["base"]) for each in found] == [("0", "target"), ("1", "target")]
    assert found[0]["weights"] != found[1]["weights"]
    base = found[0]["weights"].split("+")[0]
    assert base == fingerprint_model(model)["weights"]
    # On the Hub, by its commit, which the path of its cached files has.
    adapter = AdapterModel(model, tmp_path / "0")
    monkeypatch.setattr(adapter, "peft", "you/adapter")
    config = Path("/cache/models--you--adapter/snapshots/0123abc/adapter_config.json")
    monkeypatch.setattr(sidecar, "stored", lambda where, name: config)
    hub = fingerprint_model(adapter)
    assert (hub["name"], hub["weights"]) == ("you/adapter", f"{base}+0123abc")
    monkeypatch.setattr(sidecar, "stored", lambda where, name: None)
    assert fingerprint_model(adapter)["weights"] == base


@pytest.mark.parametrize("changed", [False, True])
def test_a_live_model_is_known_by_a_sample_of_every_parameter(model, monkeypatch, changed):
    monkeypatch.setattr(model, "repo_id", "live/target")
    before = fingerprint_model(model)
    assert before["name"] == "live/target"
    norm = model._module.model.norm.weight
    try:
        if changed:
            norm.data.add_(1)
        assert (fingerprint_model(model) != before) == changed
    finally:
        if changed:
            norm.data.sub_(1)
