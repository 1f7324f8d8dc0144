"""Sidecar files: where they are found, in folders and on the Hub, and what malformed ones say."""

import json
import re
from pathlib import Path

import httpx
import huggingface_hub
import hypothesis.strategies as st
import pytest
import yaml
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from hypothesis import given, settings

from nnsight_nla.checkpoint.checkpoint import PRESETS, Checkpoint
from nnsight_nla.checkpoint.sidecar import fetch, is_hub_id
from nnsight_nla.core.injection import Injection
from nnsight_nla.errors import CheckpointError, NLAError

PUBLISHED = "ceselder/nanonla-l24-av-qwen3-8b"


def sidecar(**changes) -> dict:
    """A complete sidecar, with these top-level entries changed; ``None`` takes one out."""
    tree = {
        "kind": "nla_model",
        "schema_version": 2,
        "d_model": 64,
        "extraction": {"layer_index": 3},
        "tokens": {"injection_char": "㈎", "injection_token_id": 7},
        "prompt_templates": {"av": "Explain <concept>{injection_char}</concept>."},
        "training": {"injection_mode": "karvonen_add_norm_matched"},
    }
    return {key: value for key, value in (tree | changes).items() if value is not None}


def refused(message: str):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


def test_a_folder_and_a_file_with_yaml_or_json(tmp_path):
    tree = sidecar()
    yaml_file, json_file = tmp_path / "nla_meta.yaml", tmp_path / "nla_meta.json"
    json_file.write_text(json.dumps(tree), "utf-8")
    assert Checkpoint.load(tmp_path).source["layer"] == f"extraction.layer_index in {json_file}"
    yaml_file.write_text(yaml.safe_dump(tree), "utf-8")
    from_folder = Checkpoint.load(tmp_path)
    assert from_folder.source["layer"] == f"extraction.layer_index in {yaml_file}"
    assert Checkpoint.load(str(yaml_file)) == from_folder
    data = tmp_path / "train.parquet.nla_meta.yaml"
    data.write_bytes(b"\xef\xbb\xbf" + yaml_file.read_bytes())  # A byte order mark.
    assert Checkpoint.load(data).layer == 3
    mine = Injection("add", "block", 2)
    assert Checkpoint.load(tmp_path, injection=mine).injection == mine


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "av").mkdir()
    (tmp_path / "av" / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar()), "utf-8")
    assert Checkpoint.load("~/av").layer == 3


@pytest.mark.parametrize(
    "text",
    [
        b"a: [1",
        b"\xff\xfe\x00",
        b"{[1]: 2}",
        b"a: 2001-13-45",
        b"a: !!int foo",
        b"a: !!bool foo",
        b"a: " + b"1" * 5000,
        b"[" * 3000,
        b"a: !!python/object/apply:os.system [true]",
    ],
    ids=range(9),
)
def test_malformed_yaml(tmp_path, text):
    file = tmp_path / "nla_meta.yaml"
    file.write_bytes(text)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))} is not readable as YAML: "):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"{'a': 1}", b"[" * 99999], ids=range(4))
def test_malformed_json(tmp_path, text):
    file = tmp_path / "nla_meta.json"
    file.write_bytes(text)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(file))} is not readable as JSON: "):
        Checkpoint.load(tmp_path)


def test_an_empty_file(tmp_path):
    (tmp_path / "nla_meta.yaml").write_bytes(b"")
    with pytest.raises(CheckpointError, match="expected a mapping, got NoneType"):
        Checkpoint.load(tmp_path)


def test_a_folder_without_a_sidecar(tmp_path):
    with refused(
        f"{tmp_path} has no nla_meta.yaml or nla_meta.json. Use the folder that ships with the "
        "checkpoint, or describe it: NLA(..., checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    ):
        Checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["/no/such/folder", "no-such-folder", "a/b/c", "./x/y"])
def test_a_path_that_does_not_exist(name):
    with refused(
        f"{name!r} is neither a folder on this machine (looked at {Path(name).absolute()}) nor a "
        "Hub id of the form 'owner/name'."
    ):
        Checkpoint.load(name)


def test_what_a_hub_id_looks_like():
    assert is_hub_id(PUBLISHED)
    assert is_hub_id("a_b/c.d-e")
    for name in ("name", "/a/b", "a/b/c", "../b", "a b/c", "a/", "~/b"):
        assert not is_hub_id(name)


# The Hub.


@pytest.fixture
def no_network(tmp_path, monkeypatch) -> Path:
    """No cache and no network: the Hub client's constants are read when it is imported."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_hub_id_with_no_network(no_network):
    with refused(
        f"There is no folder {Path('some/one').absolute()}. As a Hub id, 'some/one': "
        "nla_meta.yaml or nla_meta.json is not in the local Hub cache "
        f"({no_network}) and could not be fetched (LocalEntryNotFoundError). With no network, "
        "download the repository elsewhere and pass its folder: NLA('/path/to/one'). The embedded "
        "pair needs no network: nnsight_nla.tiny.load()."
    ):
        Checkpoint.load("some/one")


def test_a_published_checkpoint_with_no_network_gets_its_preset(no_network):
    found = Checkpoint.load(PUBLISHED)
    assert found == PRESETS[PUBLISHED]
    assert found.source == dict.fromkeys(found.source, f"preset {PUBLISHED}")
    assert {"layer", "template", "marker_id", "left_id", "injection"} <= set(found.source)
    mine = Injection("add", "block", 2)
    overridden = Checkpoint.load(PUBLISHED, injection=mine)
    assert overridden.injection == mine
    assert overridden.source["injection"] == "the caller"
    assert overridden.source["layer"] == f"preset {PUBLISHED}"


def test_a_cached_json_sidecar_is_found_with_no_network(no_network):
    snapshot = no_network / "models--some--one" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "nla_meta.json").write_text(json.dumps(sidecar()), "utf-8")
    refs = no_network / "models--some--one" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0" * 40)
    assert Checkpoint.load("some/one").layer == 3


def _response(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/some/one"))


def _answer(monkeypatch, answers: dict) -> list[str]:
    asked: list[str] = []

    def download(name: str, file: str) -> str:
        asked.append(file)
        answer = answers.get(file, RemoteEntryNotFoundError("no entry", response=_response(404)))
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return asked


def test_a_repository_that_answers_but_has_no_sidecar(monkeypatch):
    asked = _answer(monkeypatch, {})
    with refused(
        "The Hub repository 'some/one' has no nla_meta.yaml or nla_meta.json and nnsight_nla has "
        f"no preset for it (it has {', '.join(sorted(PRESETS))}). Describe it: NLA('some/one', "
        "checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    ):
        Checkpoint.load("some/one")
    assert asked == ["nla_meta.yaml", "nla_meta.json"]
    assert Checkpoint.load(PUBLISHED) == PRESETS[PUBLISHED]


def test_a_repository_with_a_sidecar(monkeypatch, tmp_path):
    file = tmp_path / "nla_meta.json"
    file.write_text(json.dumps(sidecar()), "utf-8")
    _answer(monkeypatch, {"nla_meta.json": file})
    assert Checkpoint.load("some/one").source["layer"] == f"extraction.layer_index in {file}"
    # A published checkpoint's own sidecar wins over the preset, but for what it does not say.
    file.write_text(json.dumps(sidecar(training=None)), "utf-8")
    found = Checkpoint.load(PUBLISHED)
    assert found.layer == 3
    assert found.source["injection"] == f"preset {PUBLISHED}"


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not cached"),
        RepositoryNotFoundError("no repository", response=_response(401)),
        OSError("broken pipe"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_fails_is_named(monkeypatch, error):
    _answer(monkeypatch, {"nla_meta.yaml": error, "nla_meta.json": error})
    with pytest.raises(CheckpointError, match="could not be fetched") as no:
        Checkpoint.load("some/one")
    assert f"({type(error).__name__})" in str(no.value)
    assert no.value.__cause__ is error


def test_an_id_that_the_hub_client_refuses(no_network):
    with pytest.raises(CheckpointError, match=r"could not be fetched \(HFValidationError\)"):
        Checkpoint.load("some/one..two")


def test_a_file_of_a_repository_is_there_or_known_to_be_absent(monkeypatch, tmp_path, no_network):
    with pytest.raises(LocalEntryNotFoundError):
        fetch("some/one", "ar_meta.json")  # Nobody knows.
    _answer(monkeypatch, {"ar_meta.json": tmp_path / "ar_meta.json"})
    assert fetch("some/one", "ar_meta.json") == tmp_path / "ar_meta.json"
    assert fetch("some/one", "value_head.safetensors") is None


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | st.binary(max_size=40))
def test_no_file_raises_anything_but_our_errors(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "nla_meta.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(NLAError):
        Checkpoint.load(file)
