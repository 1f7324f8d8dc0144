"""Sidecars: every dialect's places, who wins, and what each broken one is told."""

import copy
import hashlib
import json
import math
import re

import hypothesis.strategies as st
import jaxtyping
import pytest
import yaml
from hypothesis import given, settings

from nnsight_nla.checkpoint.checkpoint import (
    AR_TEMPLATE,
    PRESETS,
    Checkpoint,
    parse_sidecar,
)
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
    with pytest.raises(CheckpointError, match=f"^meta: {field} has contradictory values: ") as no:
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
        f"injection_scale is {scale!r}). Pass it: NLA(..., checkpoint=Injection('add', 'block', "
        "1)) for norm-matched addition at block 1, or checkpoint=Injection('replace', 'embedding', "
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
    ("nonsense", "meta: expected a mapping, got str 'nonsense'."),
    (None, "meta: expected a mapping, got NoneType None."),
    ([1], "meta: expected a mapping, got list [1]."),
    (sidecar(kind=None), "meta: kind is None, expected one of nla_model, nla_dataset."),
    (sidecar(kind="sae"), "meta: kind is 'sae', expected one of nla_model, nla_dataset."),
    (sidecar(kind=[]), "meta: kind is [], expected one of nla_model, nla_dataset."),
    (sidecar(schema_version=3), "meta: schema_version is 3; nnsight_nla reads 1 and 2."),
    (sidecar(schema_version="2"), "meta: schema_version is '2'; nnsight_nla reads 1 and 2."),
    (
        sidecar(extraction__norm="whitened"),
        "meta: extraction.norm is 'whitened'. This verbalizer was trained on whitened vectors, but "
        "nnsight_nla supports raw residuals only: the texts would be silently wrong.",
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
        "ar.num_hidden_layers or layer_index), marker (at tokens.injection_char).",
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
        "meta: Injection(site='block', layer=-1): expected the number of the block whose output "
        "is written, from 0, for example Injection(layer=1).",
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
    *(("marker", bad, f"marker is {bad!r}, expected the text of a token.") for bad in ("", 7)),
    ("injection", "add", "injection is 'add', expected an Injection(...)."),
    *(
        (
            "template",
            bad,
            f"template contains {{injection_char}} {count} times, expected at least once: {bad!r}.",
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
        "ar_template contains {explanation} 0 times, expected exactly once: 'Summary: <text>'.",
    ),
    *(
        (
            field,
            f"\ud800 {slot}",
            f"{field} is not Unicode: it has half of a surrogate pair. It is '\\ud800 {slot}'.",
        )
        for field, slot in (("template", "{injection_char}"), ("ar_template", "{explanation}"))
    ),
    ("marker", "\ud800", "marker is '\\ud800', expected the text of a token."),
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
        f"{injection} cannot be written to a sidecar: a sidecar describes either 'add' at a block "
        "or 'replace' at the embedding."
    ):
        by_hand(injection=injection).to_sidecar("av")


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
