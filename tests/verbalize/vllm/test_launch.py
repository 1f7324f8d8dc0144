"""The options that vLLM is started with."""

import json
import shlex
import socket
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnsight_nla import NLA, Injection, NLAError, VerbalizationError, tiny
from nnsight_nla.cli import app
from nnsight_nla.core.injection import OPERATIONS
from nnsight_nla.verbalize.vllm import launch, plugin
from nnsight_nla.verbalize.vllm.settings import FIELD, Settings
from tests.models.test_adapter import lora

AV = str(tiny.paths()["av"])


def options(given=None, nla=None, load=None):
    nla = nla or NLA(AV, dtype="float32")
    return launch.engine_options(nla._verbalizer, load or {}, given or {})


def test_the_injection_travels_in_the_configuration():
    found = options({"max_num_seqs": 8, "hf_overrides": {"rope_theta": 5}})
    overrides = found["hf_overrides"]
    assert overrides["architectures"] == ["NLAQwen3ForCausalLM"]
    assert overrides["rope_theta"] == 5
    nla = NLA(AV)
    checkpoint = nla.checkpoint
    assert Settings.read(overrides[FIELD]) == Settings(
        checkpoint.injection, checkpoint.marker_id, 1, AV, checkpoint.base_model, (3,),
        checkpoint.sidecar_hash,
    )  # fmt: skip
    assert (found["model"], found["dtype"], found["max_num_seqs"]) == (AV, "float32", 8)
    assert found["enable_prompt_embeds"] is True


def test_given_options_go_before_ours():
    found = options({"dtype": "bfloat16", "logits_processors": ["my.module:Mine"]})
    assert found["dtype"] == "bfloat16"
    assert found["logits_processors"][0] == "my.module:Mine"
    assert found["logits_processors"][1].endswith("draws:VectorDraws")


@pytest.mark.parametrize("name", ["model", "enable_prompt_embeds", "worker_extension_cls"])
def test_an_option_that_the_injection_needs_is_refused(name):
    with pytest.raises(VerbalizationError, match=rf"vllm=\{{'{name}': False\}}: the injection"):
        options({name: False})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"hf_overrides": 5}, "expected a dict"),
        ({"logits_processors": "my.module:Mine"}, "expected a list"),
    ],
)
def test_an_option_that_is_added_to_has_vllms_form(given, said):
    with pytest.raises(VerbalizationError, match=said):
        options(given)


@pytest.mark.parametrize("vllm", [[1], "max_num_seqs=8", 512])
def test_what_is_no_dict_of_options_is_refused(vllm):
    with pytest.raises(VerbalizationError, match=r"expected a dict of vLLM's options"):
        NLA(AV, engine="vllm", vllm=vllm)


@pytest.mark.parametrize("name", ["quantization_config", "load_in_8bit", "subfolder"])
def test_an_option_of_transformers_that_vllm_has_not_is_refused(name):
    with pytest.raises(VerbalizationError, match=rf"^{name}=.*Pass its own.*ar_options"):
        options(load={name: "given"})


def test_the_dtype_auto_is_the_verbalizers_own():
    assert options({"dtype": "auto"})["dtype"] == "float32"


@pytest.mark.parametrize(
    "word", ["--model", "--hf-overrides={}", "--port", "--enable-prompt-embeds"]
)
def test_an_option_that_serve_sets_is_refused_after_the_dashes(word):
    done = CliRunner().invoke(app, ["serve", AV, "--dry-run", "--", word, "1"])
    assert isinstance(done.exception, VerbalizationError)
    assert "sets this option of vLLM itself" in str(done.exception)


def test_an_operation_of_the_callers_own_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "blend", OPERATIONS["add"])
    nla = NLA(AV, checkpoint=Injection("blend", "block", 1))
    with pytest.raises(VerbalizationError, match="by the operations add and replace, not by 'bl"):
        options(nla=nla)


def test_an_oracles_questions_may_have_any_number_of_markers():
    nla = NLA(AV)
    asking = replace(nla.checkpoint, template="{injection_char}: {question}", calibration=None)
    assert Settings.of(asking, nla.prompt).slots is None
    assert Settings.read(Settings.of(asking, nla.prompt).text).slots is None


def test_a_model_that_is_already_loaded_is_refused(nla):
    with pytest.raises(VerbalizationError, match="engine='vllm' loads the weights itself"):
        NLA(nla.av, checkpoint=nla.checkpoint, engine="vllm")


def test_without_vllm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(VerbalizationError, match=r"pip install 'nnsight-nla\[vllm\]'"):
        NLA(AV, engine="vllm")


@pytest.mark.parametrize(("rank", "allowed"), [(4, 8), (16, 16), (100, 128)])
def test_an_adapter_is_vllms_lora(tmp_path, rank, allowed):
    folder = lora(tmp_path / "av")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": rank}), "utf-8")
    sidecar = (tiny.paths()["av"] / "nla_meta.yaml").read_text("utf-8")
    (folder / "nla_meta.yaml").write_text(sidecar, "utf-8")
    nla = NLA(tiny.paths()["target"], peft=str(folder), dtype="float32")
    found = options(nla=nla)
    assert (found["model"], found["max_lora_rank"]) == (str(tiny.paths()["target"]), allowed)
    assert launch.adapter_of(nla._verbalizer) == str(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [("use_dora", True), ("bias", "lora_only"), ("modules_to_save", ["lm_head"]), ("r", 600)],
)
def test_an_adapter_that_vllms_lora_cannot_run_is_refused(tmp_path, field, value):
    folder = lora(tmp_path / "av")
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    sidecar = (tiny.paths()["av"] / "nla_meta.yaml").read_text("utf-8")
    (folder / "nla_meta.yaml").write_text(sidecar, "utf-8")
    nla = NLA(tiny.paths()["target"], peft=str(folder), dtype="float32")
    (folder / "adapter_config.json").write_text(json.dumps({**config, field: value}), "utf-8")
    with pytest.raises(
        VerbalizationError, match=rf"has .*{value if field == 'r' else field}.*lacks"
    ):
        options(nla=nla)


def test_serve_prints_a_command_that_says_everything():
    done = CliRunner().invoke(
        app, ["serve", AV, "--port", "8123", "--dry-run", "--", "--tensor-parallel-size", "2"]
    )
    assert done.exit_code == 0, done.output
    words = shlex.split(done.stdout)
    assert words[1:5] == ["-m", "vllm.entrypoints.openai.api_server", "--model", AV]
    assert words[-2:] == ["--tensor-parallel-size", "2"]
    assert words[words.index("--port") + 1] == "8123"
    assert words[words.index("--middleware") + 1] == launch.MIDDLEWARE
    overrides = json.loads(words[words.index("--hf-overrides") + 1])
    assert overrides["architectures"] == ["NLAQwen3ForCausalLM"]
    assert "--enable-prompt-embeds" in words


def test_a_port_that_is_taken_is_named_before_anything_is_loaded():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", AV, "--port", str(port)])
    assert isinstance(done.exception, NLAError)
    assert f"Cannot listen on 127.0.0.1, port {port}" in str(done.exception)


def test_a_folder_is_served_by_its_whole_path(monkeypatch):
    monkeypatch.chdir(Path(AV).parent)
    done = CliRunner().invoke(app, ["serve", Path(AV).name, "--dry-run"])
    words = shlex.split(done.stdout)
    assert words[words.index("--model") + 1] == words[words.index("--tokenizer") + 1] == AV
    overrides = json.loads(words[words.index("--hf-overrides") + 1])
    assert Settings.read(overrides[FIELD]).name == AV


def test_the_entry_point_is_the_plug_ins_function():
    written = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text("utf-8"))
    found = written["project"]["entry-points"]["vllm.general_plugins"]
    assert found == {"nnsight_nla": f"{plugin.__name__}:{plugin.register.__name__}"}
