"""Two names of one model: ids, addresses, folders of the Hub's cache, and copies."""

import json
from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, Qwen3Config

from nnsight_nla.checkpoint.identity import fingerprint, hub_id, same_model, stored_config

SNAPSHOT = "models--you--t/snapshots/0123abc"
SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "num_key_value_heads": 2, "vocab_size": 100, "eos_token_id": 3,
}  # fmt: skip


def copy(folder, **changes):
    """A folder that holds a configuration and no weights."""
    folder.mkdir(parents=True)
    config = Qwen3Config(**{**SMALL, **changes}).to_dict()
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen3"}, default=str))
    return str(folder)


@pytest.mark.parametrize(
    "name",
    [
        "you/t", SNAPSHOT, f"/cache/hub/{SNAPSHOT}", f"/cache/hub/{SNAPSHOT}/",
        "C:\\hub\\models--you--t\\snapshots\\0123abc", "https://huggingface.co/you/t",
        "huggingface.co/you/t/tree/main", "https://hf.co/you/t", "YOU/T", "you/t/",
        "models--you--t",
    ],
)  # fmt: skip
def test_all_names_of_a_model_of_the_hub_are_one(name):
    assert same_model(name, "you/t")
    assert same_model("you/t", name)
    assert not same_model(name, "you/other")
    assert not same_model(name, "models--you--t-base/snapshots/0123abc")


def test_the_id_of_a_name():
    assert hub_id("models--a--b--c/snapshots/1") == "a/b--c"
    assert hub_id("/home/me/model") is None
    assert hub_id("model") is None


def test_a_local_copy_is_known_by_its_configuration(tmp_path):
    half = copy(tmp_path / "t-bf16", dtype="bfloat16")
    full = copy(tmp_path / "elsewhere" / "t-fp32", dtype="float32")
    deep = copy(tmp_path / "deep" / "t-fp32", num_hidden_layers=3)
    chat = copy(tmp_path / "chat", eos_token_id=[3, 4])
    assert same_model(half, full)
    assert not same_model(full, deep)  # The name is the same, the model is not.
    assert not same_model(full, chat)
    known = stored_config(half)
    assert same_model("/of/another/machine/x", full, (known, None))
    assert not same_model("/of/another/machine/t-fp32", deep, (known, None))
    assert not same_model("/of/another/machine/x", full)
    assert same_model("/of/another/machine/T-fp32", full)


def test_a_link_and_a_relative_path_are_the_folder(tmp_path, monkeypatch):
    folder = copy(tmp_path / "hub" / SNAPSHOT)
    (tmp_path / "mine").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "./mine", "mine/", str(tmp_path / "mine"), f"hub/{SNAPSHOT}"):
        assert same_model(name, "you/t"), name


def test_a_fingerprint_is_of_the_shape_only():
    one = fingerprint(Qwen3Config(**SMALL, dtype="bfloat16"))
    assert one == fingerprint(Qwen3Config(**SMALL, dtype="float32", use_cache=False))
    assert one != fingerprint(LlamaConfig(**SMALL))
    for name in SMALL:
        assert one != fingerprint(Qwen3Config(**{**SMALL, name: SMALL[name] * 2})), name
    wrapper = SimpleNamespace(get_text_config=lambda: Qwen3Config(**SMALL))
    assert fingerprint(wrapper) == one


def test_a_damaged_configuration_is_not_known(tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    assert stored_config(str(tmp_path / "bad")) is None
    assert stored_config("you/absent") is None


def test_a_relative_name_is_looked_up_in_each_folder_anew(tmp_path, monkeypatch):
    target = copy(tmp_path / "there" / "weights" / "target")
    monkeypatch.chdir(tmp_path)
    assert stored_config("weights/target") is None
    monkeypatch.chdir(tmp_path / "there")
    assert stored_config("weights/target") == stored_config(target) is not None
