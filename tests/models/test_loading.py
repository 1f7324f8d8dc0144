"""Getting the halves: what is tried, and what each failure says."""

import ast
import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import huggingface_hub
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import nnsight_nla
from nnsight_nla import NLA, tiny
from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.cli.app import load_target
from nnsight_nla.errors import CheckpointError, InjectionError
from nnsight_nla.models.loading import at_depth, from_pretrained, load_model, load_tokenizer
from nnsight_nla.models.reconstructor_files import cut_config
from nnsight_nla.models.weights import load_module
from nnsight_nla.training import train
from nnsight_nla.training.compatibility import read_base

PACKAGE = Path(nnsight_nla.__file__).parent

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
            "TransformersModel(..., peft=...), or pass its path instead. Options for the other "
            "model only: NLA(..., av_options={...}) or ar_options={...}."
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
    assert str(no.value).endswith(" Use a folder that save_pretrained() wrote.")


def test_a_hub_id_with_no_network():
    with pytest.raises(CheckpointError) as no:
        load_model("some/av", tokenizer("own"), None, {})
    assert str(no.value).startswith("The configuration of 'some/av' could not be read")
    assert str(no.value).endswith(
        f"There is no folder {Path('some/av').absolute()}. If it is a Hub id and there is no "
        "network, download the repository elsewhere and pass its folder."
    )


class TestCodeOfARepository:
    """It never runs unless the flag is given, whoever loads what, whatever is typed at a prompt."""

    @pytest.fixture
    def hostile(self, tmp_path, monkeypatch) -> tuple[Path, Path]:
        """A model with code that leaves a file when it is imported; every question gets a yes."""
        folder, ran = tmp_path / "hostile", tmp_path / "ran"
        folder.mkdir()
        code = (
            "from pathlib import Path\n"
            "from transformers import PreTrainedConfig, PreTrainedTokenizerFast, Qwen3ForCausalLM\n"
            f"Path({str(ran)!r}).touch()\n"
            "class Config(PreTrainedConfig):\n    model_type = 'hostile'\n"
            "class Tokenizer(PreTrainedTokenizerFast):\n    pass\n"
            "class Model(Qwen3ForCausalLM):\n    config_class = Config\n"
        )
        (folder / "hostile.py").write_text(code, "utf-8")
        auto = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
        config = {**CONFIG, "model_type": "hostile", "architectures": ["Model"], "auto_map": auto}
        (folder / "config.json").write_text(json.dumps(config), "utf-8")
        tokenizer("own").save_pretrained(folder)
        named = {
            "tokenizer_class": "Tokenizer",
            "auto_map": {"AutoTokenizer": [None, "hostile.Tokenizer"]},
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(named), "utf-8")
        monkeypatch.setattr("builtins.input", lambda *_: "y")
        return folder, ran

    LOADERS: ClassVar = {
        "a tokenizer": lambda folder: load_tokenizer(folder, checkpoint()),
        "the tokenizer of the base that a sidecar names": lambda folder: load_tokenizer(
            folder.parent, checkpoint(str(folder))
        ),
        "the depth of a template": lambda folder: at_depth(
            folder, replace(checkpoint(), template="{injection_char} {depth_pct}"), {}
        ),
        "a reconstructor's configuration": lambda folder: cut_config(folder, 1, {}),
        "an AV or a target": lambda folder: load_model(folder, None, None, {}),
        "a target of the command line": lambda folder: load_target(str(folder), "auto", None),
        "a base to train": lambda folder: load_module(AutoModelForCausalLM, folder),
        "a base's configuration": lambda folder: read_base(
            "configuration", folder, partial(from_pretrained, AutoConfig)
        ),
    }

    @pytest.mark.parametrize("what", LOADERS)
    def test_is_refused(self, hostile, what):
        folder, ran = hostile
        with pytest.raises(CheckpointError, match="running code from its repository"):
            self.LOADERS[what](folder)
        assert not ran.exists()

    def test_runs_if_the_flag_is_given(self, hostile):
        """Otherwise the tests above would hold for a file that nothing ever imports."""
        folder, ran = hostile
        from_pretrained(AutoConfig, folder, trust_remote_code=True)
        assert ran.exists()

    def test_there_is_one_place(self):
        """No other module calls transformers' or nnsight's loaders."""
        trees = {
            file.name: list(ast.walk(ast.parse(file.read_text("utf-8"))))
            for file in PACKAGE.rglob("*.py")
        }
        calls = [(file, n) for file, tree in trees.items() for n in tree if isinstance(n, ast.Call)]
        loads = {
            (file, name)
            for file, node in calls
            if (name := ast.unparse(node.func).rpartition(".")[2])
            in ("TransformersModel", "LanguageModel")
            or (name == "from_pretrained" and isinstance(node.func, ast.Attribute))
        }
        # identity.py is on a lower floor, and reads what is on this machine; it never trusts code.
        assert loads == {
            ("loading.py", "TransformersModel"),
            ("loading.py", "from_pretrained"),
            ("identity.py", "from_pretrained"),
        }
        (lower,) = [
            node
            for file, node in calls
            if file == "identity.py" and "from_pre" in ast.unparse(node.func)
        ]
        assert "trust_remote_code=False" in ast.unparse(lower)
        # Nor is a loader handed on, except to loading.from_pretrained by its class.
        handed = {
            file
            for file, tree in trees.items()
            for node in tree
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained"
        }
        assert handed == {"loading.py", "identity.py"}


class TestDtype:
    @pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
    @pytest.mark.parametrize(
        "given", ["float23", "int64", "bool", "torch.nosuch", 16, torch.int8, "Tensor", ["float32"]]
    )
    def test_what_is_none(self, folder, name, given):
        for load in (
            lambda: load_model(folder, tokenizer("own"), None, {name: given}),
            lambda: NLA(tiny.paths()["av"], **{name: given}),
        ):
            with pytest.raises(CheckpointError) as no:
                load()
            assert str(no.value) == (
                f"{name}={given!r}: expected 'float32', 'bfloat16', 'float16', 'auto', or a "
                "quantized dtype: 'int8', 'nf4', 'fp8'."
            )

    @pytest.mark.parametrize("given", ["auto", "float32", "bfloat16", torch.float16, "nf4", None])
    def test_what_is_one(self, folder, given):
        assert not load_model(folder, tokenizer("own"), None, {"dtype": given}).dispatched

    def test_training_does_not_quantize(self, tmp_path):
        for given in ("nf4", "auto", "float23"):
            with pytest.raises(CheckpointError, match=rf"^dtype='{given}': .*, 'float16'\.$"):
                train("av", tmp_path / "rows", base="b", out=tmp_path / "o", dtype=given)
