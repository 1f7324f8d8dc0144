"""Getting the halves: what is tried, and what each failure says."""

import json
import re
from pathlib import Path

import huggingface_hub
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.errors import CheckpointError, InjectionError
from nnsight_nla.models.loading import load_model, load_tokenizer

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 8,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def tokenizer(*words: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", *words])}
    built = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=built, unk_token="[UNK]", pad_token="[UNK]")


def checkpoint(base_model: str | None = None) -> Checkpoint:
    return Checkpoint(
        layer=1,
        d_model=16,
        template="<concept>{injection_char}</concept>",
        marker="m",
        marker_id=1,
        base_model=base_model,
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    """A checkpoint's folder with a configuration and nothing else."""
    folder = tmp_path / "av"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), "utf-8")
    return folder


@pytest.fixture(autouse=True)
def _no_network(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_folders_own_tokenizer(folder):
    tokenizer("own").save_pretrained(folder)
    for source in (folder, str(folder)):
        assert load_tokenizer(source, checkpoint()).get_vocab() == {"[UNK]": 0, "own": 1}


def test_the_base_models_tokenizer_where_the_folder_has_none(folder, tmp_path):
    base = tmp_path / "base"
    tokenizer("base").save_pretrained(base)
    # Beside a bare config.json transformers 5 makes an empty tokenizer: that is none.
    assert "base" in load_tokenizer(folder, checkpoint(str(base))).get_vocab()
    tokenizer("own").save_pretrained(folder)
    assert "own" in load_tokenizer(folder, checkpoint(str(base))).get_vocab()


def test_a_damaged_tokenizer_is_passed_over_and_named(folder, tmp_path):
    tokenizer("own").save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(CheckpointError) as no:
        load_tokenizer(folder, checkpoint())
    assert str(no.value).startswith(f"No tokenizer for {folder}. Tried {folder}: ")


def test_no_tokenizer_anywhere(folder):
    message = (
        f"No tokenizer for {folder}. Tried {folder}: no tokenizer files. Put the base model's "
        "tokenizer files into the checkpoint's folder, or pass a TransformersModel(..., "
        "tokenizer=...)."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        load_tokenizer(folder, checkpoint())
    with pytest.raises(CheckpointError, match=r"no tokenizer files; some/base: .*connect"):
        load_tokenizer(folder, checkpoint("some/base"))


def test_a_tilde_is_the_home_folder(folder, monkeypatch):
    tokenizer("own").save_pretrained(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert "own" in load_tokenizer("~/av", checkpoint()).get_vocab()
    model = load_model("~/av", tokenizer("own"), None, {})
    assert not model.dispatched


def test_a_model_without_its_weights(folder):
    mine = tokenizer("own")
    model = load_model(folder, mine, None, {})
    assert model.tokenizer is mine
    assert not model.dispatched
    assert {parameter.device.type for parameter in model._module.parameters()} == {"meta"}
    assert load_tokenizer(model, checkpoint()) is mine


def test_a_live_model_is_taken_as_it_is():
    from nnsight import TransformersModel

    live = TransformersModel(Qwen3ForCausalLM(Qwen3Config(**CONFIG)), tokenizer=tokenizer("own"))
    assert load_model(live, None, None, {}) is live
    assert load_tokenizer(live, checkpoint()) is live.tokenizer
    for peft, load, given in (
        ("some/lora", {}, "peft"),
        (None, {"dtype": "bfloat16", "device_map": "auto"}, "dtype, device_map"),
        ("some/lora", {"dtype": "bfloat16"}, "peft, dtype"),
    ):
        message = (
            f"{given} cannot be applied to a model that is already loaded. Load it yourself: "
            "TransformersModel(..., peft=...), or pass its path instead."
        )
        with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
            load_model(live, None, peft, load)


def test_what_is_no_model():
    message = "Expected a path, a Hub id or a TransformersModel with a tokenizer, got dict."
    with pytest.raises(CheckpointError, match=f"^{message}$"):
        load_tokenizer({}, checkpoint())
    with pytest.raises(InjectionError, match=r"^Expected an nnsight TransformersModel, got dict"):
        load_model({}, None, None, {})


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (None, "config.json"),
        ("{", "valid JSON"),
        ('{"model_type": "nosuch"}', "`nosuch`"),
        ('{"model_type": "qwen3", "hidden_size": "wide"}', "hidden_size"),
    ],
)
def test_a_configuration_that_cannot_be_read(folder, text, part):
    (folder / "config.json").unlink()
    if text is not None:
        (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as no:
        load_model(folder, tokenizer("own"), None, {})
    assert str(no.value).startswith(f"The configuration of {str(folder)!r} could not be read: ")
    assert part in str(no.value)
    assert str(no.value).endswith(
        " With no network, download the repository elsewhere and pass its folder."
    )


def test_a_hub_id_with_no_network():
    with pytest.raises(CheckpointError, match=r"^The configuration of 'some/av' could not be read"):
        load_model("some/av", tokenizer("own"), None, {})
