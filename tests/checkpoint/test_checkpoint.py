"""Sidecars: every dialect's places, who wins, and what each broken one is told."""

import copy
import hashlib
import json
import math
import re
from pathlib import Path

import httpx
import huggingface_hub
import hypothesis.strategies as st
import jaxtyping
import pytest
import yaml
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from hypothesis import given, settings

from nnsight_nla.checkpoint.checkpoint import (
    AR_TEMPLATE,
    AV_TEMPLATE,
    PRESETS,
    Checkpoint,
    parse_sidecar,
)
from nnsight_nla.checkpoint.sidecar import is_hub_id
from nnsight_nla.core.injection import Injection
from nnsight_nla.errors import CheckpointError, NLAError

PUBLISHED = "ceselder/nanonla-l24-av-qwen3-8b"
TEMPLATE = "Explain <concept>{injection_char}</concept>."


def sidecar(**changes) -> dict:
    """A complete sidecar; a key's dots go down, ``None`` takes the entry out."""
    tree = {
        "kind": "nla_model",
        "schema_version": 2,
        "d_model": 64,
        "extraction": {"layer_index": 3, "base_model": "Qwen/Qwen3-8B", "norm": "none"},
        "tokens": {
            "injection_char": "㈎",
            "injection_token_id": 7,
            "injection_left_neighbor_id": 5,
            "injection_right_neighbor_id": 6,
        },
        "prompt_templates": {"av": TEMPLATE, "ar": AR_TEMPLATE},
        "training": {"injection_mode": "karvonen_add_norm_matched"},
    }
    for place, value in changes.items():
        *above, last = place.split("__")
        node = tree
        for key in above:
            node = node.setdefault(key, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return tree


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Without the tests' own shape checks, which would refuse a wrong type before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def refused(message: str):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


def by_hand(**changes) -> Checkpoint:
    fields = {"layer": 3, "d_model": 64, "template": TEMPLATE, "marker": "㈎", "marker_id": 7}
    return Checkpoint(**{**fields, **changes})


def test_a_complete_sidecar():
    found = parse_sidecar(sidecar(tokens__critic_suffix_ids=[1, 2]), "meta")
    assert found == Checkpoint(
        layer=3,
        d_model=64,
        template=TEMPLATE,
        marker="㈎",
        marker_id=7,
        left_id=5,
        right_id=6,
        injection=Injection("add", "block", 1),
        ar_template=AR_TEMPLATE,
        ar_suffix_ids=(1, 2),
        base_model="Qwen/Qwen3-8B",
    )
    assert found.source["layer"] == "extraction.layer_index in meta"
    assert found.source["d_model"] == "d_model in meta"
    assert found.source["injection"] == "training.injection_mode in meta (layer 1, as published)"
    assert hash(found) == hash(parse_sidecar(sidecar(tokens__critic_suffix_ids=[1, 2]), "other"))


PLACES = [
    ("layer", "extraction__layer_index", "extraction_layer_index", 3),
    ("layer", "extraction__layer_index", "critic__extraction_layer_index", 3),
    ("layer", "extraction__layer_index", "ar__extraction_layer_index", 3),
    ("d_model", "d_model", "extraction__d_model", 64),
    ("template", "prompt_templates__av", "prompt_templates__actor", TEMPLATE),
    ("template", "prompt_templates__av", "prompt_templates__verbalizer", TEMPLATE),
    ("ar_template", "prompt_templates__ar", "prompt_templates__critic", AR_TEMPLATE),
    ("ar_template", "prompt_templates__ar", "prompt_templates__reconstructor", AR_TEMPLATE),
    ("base_model", "extraction__base_model", "base_model", "Qwen/Qwen3-8B"),
    ("base_model", "extraction__base_model", "base_checkpoint", "Qwen/Qwen3-8B"),
]


@pytest.mark.parametrize(("field", "usual", "place", "value"), PLACES)
def test_every_dialects_place(field, usual, place, value):
    moved = parse_sidecar(sidecar(**{usual: None, place: value}), "meta")
    assert getattr(moved, field) == value
    assert moved.source[field] == f"{place.replace('__', '.')} in meta"
    assert moved == parse_sidecar(sidecar(), "meta")


@pytest.mark.parametrize(("field", "usual", "place", "value"), PLACES)
def test_places_that_agree_are_fine_and_those_that_differ_are_refused(field, usual, place, value):
    assert parse_sidecar(sidecar(**{place: value}), "meta") == parse_sidecar(sidecar(), "meta")
    other = value + 1 if isinstance(value, int) else f"other {value}"
    with pytest.raises(CheckpointError, match=f"^meta: {field} is given twice and differs: ") as no:
        parse_sidecar(sidecar(**{place: other}), "meta")
    assert f"{usual.replace('__', '.')} = {value!r}" in str(no.value)
    assert f"{place.replace('__', '.')} = {other!r}" in str(no.value)


def test_a_dataset_sidecar_without_role_or_scale_is_read():
    tree = sidecar(kind="nla_dataset", schema_version=None)
    assert parse_sidecar(tree, "meta").injection == Injection("add", "block", 1)
    assert parse_sidecar(sidecar(schema_version=1), "meta").layer == 3


def test_neighbours_may_be_absent():
    tree = sidecar(
        tokens__injection_left_neighbor_id=None, tokens__injection_right_neighbor_id=None
    )
    found = parse_sidecar(tree, "meta")
    assert (found.left_id, found.right_id) == (None, None)
    assert "left_id" not in found.source


MODES = [
    ("karvonen_add_norm_matched", {}, Injection("add", "block", 1)),
    ("karvonen", {"training__injection_layer": 4}, Injection("add", "block", 4)),
    (
        "norm_matched_add",
        {"training__injection_coefficient": 2.0},
        Injection("add", "block", 1, 2.0),
    ),
    # A scale belongs to a replacement: beside an addition it is not the coefficient.
    ("karvonen", {"extraction__injection_scale": 150.0}, Injection("add", "block", 1)),
    (
        "replace_embedding",
        {"extraction__injection_scale": 150.0},
        Injection("replace", "embedding", None, 150.0),
    ),
    (
        "replace",
        {"extraction__injection_scale": "sqrt_d_model"},
        Injection("replace", "embedding", None, 8.0),
    ),
]


@pytest.mark.parametrize(("mode", "more", "expected"), MODES)
def test_a_sidecars_own_mode(mode, more, expected):
    found = parse_sidecar(sidecar(training__injection_mode=mode, **more), "meta")
    assert found.injection == expected


def test_who_decides_the_injection():
    mine = Injection("add", "block", 9)
    scaled = {"extraction__injection_scale": 80000}
    both = sidecar(**scaled)
    silent = sidecar(training=None, **scaled)
    # The caller, then the mode, then a preset, then a numeric scale.
    assert parse_sidecar(both, "meta", PUBLISHED, mine).injection == mine
    assert parse_sidecar(both, "meta", PUBLISHED, mine).source["injection"] == "the caller"
    own = parse_sidecar(sidecar(training__injection_layer=2, **scaled), "meta", PUBLISHED)
    assert own.injection == Injection("add", "block", 2)
    known = parse_sidecar(silent, "meta", PUBLISHED)
    assert known.injection == PRESETS[PUBLISHED].injection
    assert known.source["injection"] == f"preset {PUBLISHED}"
    replaced = parse_sidecar(silent, "meta", "some/one")
    assert replaced.injection == Injection("replace", "embedding", None, 80000.0)
    assert replaced.source["injection"] == "extraction.injection_scale in meta"


@pytest.mark.parametrize("scale", [None, "raw", "sqrt_d_model", True])
def test_an_injection_is_never_guessed(scale):
    tree = sidecar(training=None, extraction__injection_scale=scale)
    with refused(
        "meta does not say how the vector is written (no training.injection_mode, and "
        f"injection_scale is {scale!r}). Say it: NLA(..., checkpoint=Injection('add', 'block', 1)) "
        "for norm-matched addition at block 1, or checkpoint=Injection('replace', 'embedding', "
        "None, 150.0)."
    ):
        parse_sidecar(tree, "meta")


@pytest.mark.parametrize("scale", [None, "raw", 0, -1.0, math.nan, math.inf, 10**400])
@pytest.mark.usefixtures("as_users_run_it")
def test_a_replacement_without_a_length_is_refused(scale):
    tree = sidecar(training__injection_mode="replace", extraction__injection_scale=scale)
    with pytest.raises(CheckpointError, match=r"^meta: (extraction.inj.* is |Injection\(scale=)"):
        parse_sidecar(tree, "meta")


REFUSED = [
    ("nonsense", "meta: a sidecar is a mapping, this holds str 'nonsense'."),
    (None, "meta: a sidecar is a mapping, this holds NoneType 'None'."),
    ([1], "meta: a sidecar is a mapping, this holds list '[1]'."),
    (sidecar(kind=None), "meta: kind is None, expected one of nla_model, nla_dataset."),
    (sidecar(kind="sae"), "meta: kind is 'sae', expected one of nla_model, nla_dataset."),
    (sidecar(kind=[]), "meta: kind is [], expected one of nla_model, nla_dataset."),
    (sidecar(schema_version=3), "meta: schema_version is 3; nnsight_nla reads 1 and 2."),
    (sidecar(schema_version="2"), "meta: schema_version is '2'; nnsight_nla reads 1 and 2."),
    (
        sidecar(extraction__norm="whitened"),
        "meta: extraction.norm is 'whitened'. This verbalizer was trained on whitened vectors, and "
        "nnsight_nla serves raw residuals only: its texts would be wrong without a warning.",
    ),
    (
        sidecar(training__injection_mode="magic"),
        "meta: training.injection_mode is 'magic', expected one of karvonen_add_norm_matched, "
        "karvonen, norm_matched_add, replace_embedding, replace, add.",
    ),
    (
        sidecar(extraction__layer_index=None, tokens=None),
        "meta: missing layer (at extraction.layer_index or extraction_layer_index or "
        "critic.extraction_layer_index or ar.extraction_layer_index or critic.num_hidden_layers or "
        "ar.num_hidden_layers), marker (at tokens.injection_char), marker_id (at "
        "tokens.injection_token_id).",
    ),
    (
        sidecar(d_model=None, prompt_templates="none"),
        "meta: missing d_model (at d_model or extraction.d_model), template (at "
        "prompt_templates.av or prompt_templates.actor or prompt_templates.verbalizer).",
    ),
    (
        sidecar(tokens__injection_token_id="7"),
        "marker_id (tokens.injection_token_id in meta) is '7', expected a token id.",
    ),
    (
        sidecar(training__injection_layer=-1),
        "meta: Injection(site='block', layer=-1): say at which block's output the vector is "
        "written, e.g. Injection(layer=1).",
    ),
    (
        sidecar(prompt_templates__av="At {depth} % depth: <concept>{injection_char}</concept>"),
        "template (prompt_templates.av in meta) has slots that nnsight_nla does not know: "
        "{depth}. Fill them in and pass NLA(..., checkpoint=Checkpoint(template=...)).",
    ),
]


@pytest.mark.parametrize(("tree", "message"), REFUSED)
@pytest.mark.usefixtures("as_users_run_it")
def test_what_a_sidecar_is_refused_for(tree, message):
    with refused(message):
        parse_sidecar(tree, "meta")


BAD_FIELDS = [
    *(
        ("layer", bad, f"layer is {bad!r}, expected a block number from 0.")
        for bad in (-1, 1.0, True, "3", None)
    ),
    *(
        ("d_model", bad, f"d_model is {bad!r}, expected a width from 1.")
        for bad in (0, -4, 64.0, None)
    ),
    *(
        (name, bad, f"{name} is {bad!r}, expected a token id.")
        for name in ("marker_id", "left_id", "right_id")
        for bad in (-1, "7", 7.5, False)
    ),
    ("marker_id", None, "marker_id is None, expected a token id."),
    *(
        ("marker", bad, f"marker is {bad!r}, expected the one marker character.")
        for bad in ("", "ab", None, 7)
    ),
    ("injection", "add", "injection is 'add', expected an Injection(...)."),
    *(
        (
            "template",
            bad,
            f"template has {count} times {{injection_char}}, expected at least one: {bad!r}.",
        )
        for bad, count in (
            ("no slot", 0),
            (None, 0),
            (["{injection_char}"], 0),
        )
    ),
    (
        "template",
        "{0} {injection_char} {name}",
        "template has slots that nnsight_nla does not know: {0}, {name}. Fill them in and pass "
        "NLA(..., checkpoint=Checkpoint(template=...)).",
    ),
    (
        "ar_template",
        "Summary: <text>",
        "ar_template has 0 times {explanation}, expected exactly one: 'Summary: <text>'.",
    ),
    *(
        ("ar_suffix_ids", bad, f"ar_suffix_ids is {bad!r}, expected token ids.")
        for bad in (5, "12", (1, "2"), (1, -1))
    ),
    *(
        ("base_model", bad, f"base_model is {bad!r}, expected a model's name.")
        for bad in (5, "", ["Qwen"])
    ),
]


@pytest.mark.parametrize(("field", "bad", "message"), BAD_FIELDS)
def test_a_checkpoint_made_by_hand_is_checked_field_by_field(field, bad, message):
    with refused(message):
        by_hand(**{field: bad})


def test_suffix_ids_given_as_a_list_become_a_tuple():
    assert by_hand(ar_suffix_ids=[1, 2]).ar_suffix_ids == (1, 2)


@pytest.mark.parametrize(
    "injection",
    [
        Injection("add", "block", 1),
        Injection("add", "block", 5, 2.5),
        Injection("replace", "embedding", None, 80000.0),
    ],
)
def test_a_written_sidecar_reads_back_as_the_same_checkpoint(injection, tmp_path):
    original = by_hand(
        left_id=5,
        right_id=6,
        injection=injection,
        ar_template=AR_TEMPLATE,
        ar_suffix_ids=(1, 2, 3),
        base_model="Qwen/Qwen3-8B",
    )
    tree = original.to_sidecar("av", stage="sft")
    assert (tree["role"], tree["stage"]) == ("av", "sft")
    text = yaml.safe_dump(tree, allow_unicode=True)
    assert parse_sidecar(yaml.safe_load(text), "meta") == original
    bare = by_hand()
    assert parse_sidecar(json.loads(json.dumps(bare.to_sidecar("av"))), "meta") == bare
    (tmp_path / "nla_meta.yaml").write_text(text, "utf-8")
    loaded = Checkpoint.load(tmp_path)
    assert loaded.sidecar_hash == hashlib.sha256(text.encode()).hexdigest()
    assert loaded.injection == injection


@pytest.mark.parametrize(
    "injection",
    [Injection("add", "embedding", None), Injection("replace", "block", 3, 1.0)],
)
def test_an_injection_that_sidecars_have_no_words_for_is_not_written(injection):
    with refused(
        f"{injection} has no sidecar: a sidecar says either 'add' at a block or 'replace' at the "
        "embedding."
    ):
        by_hand(injection=injection).to_sidecar("av")


# Files.


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
    with pytest.raises(CheckpointError, match="a sidecar is a mapping, this holds NoneType"):
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
        "'some/one': nla_meta.yaml or nla_meta.json is not in the local Hub cache "
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


def test_presets():
    preset = Checkpoint.preset(PUBLISHED)
    assert (preset.layer, preset.d_model, preset.marker_id) == (24, 4096, 149705)
    assert (preset.template, preset.ar_template) == (AV_TEMPLATE, AR_TEMPLATE)
    with refused(
        f"There is no preset named 'qwen'. Built in: {', '.join(sorted(PRESETS))}. Give another "
        "checkpoint's description with NLA(..., checkpoint=Checkpoint(...))."
    ):
        Checkpoint.preset("qwen")


def test_loading_does_not_edit_its_argument():
    tree = sidecar()
    before = copy.deepcopy(tree)
    parse_sidecar(tree, "meta", PUBLISHED, Injection())
    assert tree == before


# Anything that YAML can hold.
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from([TEMPLATE, "㈎", "replace", "karvonen", "nla_model", "raw", "sqrt_d_model"])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(scalars, inner, max_size=3),
    max_leaves=6,
)
ROADS = [
    "kind", "schema_version", "d_model", "extraction", "extraction__layer_index",
    "extraction__base_model", "extraction__norm", "extraction__injection_scale", "tokens",
    "tokens__injection_char", "tokens__injection_token_id", "tokens__critic_suffix_ids",
    "prompt_templates", "prompt_templates__av", "prompt_templates__ar", "training",
    "training__injection_mode", "training__injection_layer", "training__injection_coefficient",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from(ROADS), values, max_size=4),
    st.dictionaries(scalars, values, max_size=3),
)
def test_no_mapping_raises_anything_but_our_errors(changes, more):
    tree = sidecar()
    for place, value in changes.items():
        *above, last = place.split("__")
        node = tree
        for key in above:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = value
    for candidate in ({**tree, **more}, more):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # As users run it.
            try:
                found = parse_sidecar(candidate, "meta", "some/one")
            except NLAError:
                continue
        assert isinstance(found, Checkpoint)
        assert isinstance(found.injection, Injection)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40) | st.binary(max_size=40))
def test_no_file_raises_anything_but_our_errors(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "nla_meta.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(NLAError):
        Checkpoint.load(file)
