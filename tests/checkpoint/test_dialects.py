"""Sidecars as the projects write them: every field missing, mistyped, contradicted."""

import copy
import json
import re
from typing import Any

import hypothesis.strategies as st
import jaxtyping
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings

from nnsight_nla import Baseline, Checkpoint, Injection, Origin
from nnsight_nla.bulk.sources import open_source
from nnsight_nla.checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE, PRESETS, parse_sidecar
from nnsight_nla.checkpoint.dialects import KEYS, check_supported, find_fields
from nnsight_nla.core.injection import OPERATIONS
from nnsight_nla.errors import CheckpointError, NLAError
from nnsight_nla.training.published import Published

ADD = {"injection_mode": "karvonen_add_norm_matched"}
TOKENS = {
    "injection_char": "㈎",
    "injection_token_id": 149705,
    "injection_left_neighbor_id": 29,
    "injection_right_neighbor_id": 522,
    "critic_suffix_ids": [1318, 29, 366, 1708, 29],
}
DEPTH_TEMPLATE = "From depth {depth_pct}%: <concept>{injection_char}</concept>"

DIALECTS: dict[str, dict[str, Any]] = {
    # ceselder/nanoNLA: an AV ships its data set's sidecar, with no role and no scale.
    "nanoNLA data set": {
        "kind": "nla_dataset",
        "stage": "av_sft",
        "extraction": {
            "base_model": "Qwen/Qwen3-8B", "d_model": 4096, "layer_index": 24, "norm": "none",
        },
        "tokens": TOKENS,
        "prompt_templates": {"actor": AV_TEMPLATE, "critic": AR_TEMPLATE},
        "training": ADD,
    },
    # kitft: what the released checkpoints carry, the layer at the top.
    "released, schema 2": {
        "kind": "nla_model",
        "schema_version": 2,
        "role": "av",
        "stage": "rl",
        "d_model": 3584,
        "extraction_layer_index": 20,
        "extraction": {"injection_scale": 150.0, "mse_scale": 59.866518188383065},
        "tokens": {**TOKENS, "critic_suffix_ids": None},
        "prompt_templates": {"av": AV_TEMPLATE, "ar": AR_TEMPLATE},
        "base_checkpoint": "Qwen/Qwen2.5-7B-Instruct",
    },
    # kitft: what its training code writes, with the layer in the critic's section.
    "written by training, schema 2": {
        "kind": "nla_model",
        "schema_version": 2,
        "role": "ar",
        "d_model": 3584,
        "base_checkpoint": "Qwen/Qwen2.5-7B-Instruct",
        "extraction": {"injection_scale": 150.0, "mse_scale": "sqrt_d_model"},
        "tokens": TOKENS,
        "prompt_templates": {"actor": AV_TEMPLATE, "critic": AR_TEMPLATE},
        "critic": {"extraction_layer_index": 20},
    },
    # kitft, before that: K by the name that config.json uses for K + 1.
    "schema 1": {
        "kind": "nla_model",
        "schema_version": 1,
        "d_model": 3584,
        "extraction": {"injection_scale": 150.0},
        "tokens": TOKENS,
        "prompt_templates": {"actor": AV_TEMPLATE, "critic": AR_TEMPLATE},
        "critic": {"num_hidden_layers": 20},
    },
    # The inference documentation of the paper's checkpoints.
    "the paper's documentation": {
        "kind": "nla_model",
        "role": "ar",
        "d_model": 3584,
        "extraction": {"injection_scale": 150, "mse_scale": 59.87},
        "ar": {"num_hidden_layers": 20},
        "tokens": TOKENS,
        "prompt_templates": {"av": AV_TEMPLATE, "ar": AR_TEMPLATE},
    },
    # Universal verbalizers: another character, a slot for the depth, no neighbours.
    "universal": {
        "kind": "nla_model",
        "d_model": 3072,
        "extraction": {"layer_index": 12, "injection_scale": 150.0, "norm": "none"},
        "tokens": {"injection_char": "★", "injection_token_id": 27347},
        "prompt_templates": {"verbalizer": DEPTH_TEMPLATE, "reconstructor": AR_TEMPLATE},
    },
    # Home-made, as nla_meta.json.
    "home-made": {
        "kind": "nla_model",
        "d_model": 4096,
        "base_model": "Qwen/Qwen3-8B",
        "extraction": {"layer_index": 24, "injection_scale": "sqrt_d_model"},
        "tokens": {"injection_char": "㈎", "injection_token_id": 149705},
        "prompt_templates": {"av": AV_TEMPLATE},
        "training": {"injection_mode": "replace"},
    },
}  # fmt: skip
EXPECTED = {
    "nanoNLA data set": (24, 4096, Injection("add", "block", 1)),
    "released, schema 2": (20, 3584, Injection("replace", "embedding", None, 150.0)),
    "written by training, schema 2": (20, 3584, Injection("replace", "embedding", None, 150.0)),
    "schema 1": (20, 3584, Injection("replace", "embedding", None, 150.0)),
    "the paper's documentation": (20, 3584, Injection("replace", "embedding", None, 150.0)),
    "universal": (12, 3072, Injection("replace", "embedding", None, 150.0)),
    "home-made": (24, 4096, Injection("replace", "embedding", None, 64.0)),
}


@pytest.fixture
def as_users_run_it(monkeypatch):
    """Without the tests' own shape checks, which would refuse a wrong type before we do."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


def get(tree: Any, place: str) -> Any:
    for key in place.split("."):
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def put(tree: dict, place: str, value: Any) -> dict:
    tree = copy.deepcopy(tree)
    node = tree
    *above, last = place.split(".")
    for key in above:
        node = node.setdefault(key, {})
    if value is None:
        node.pop(last)
    else:
        node[last] = value
    return tree


@pytest.mark.parametrize("name", sorted(DIALECTS))
def test_every_dialect_is_read_from_its_file(name, tmp_path):
    tree = DIALECTS[name]
    if name == "home-made":
        (tmp_path / "nla_meta.json").write_text(json.dumps(tree), "utf-8")
    else:
        (tmp_path / "nla_meta.yaml").write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    found = Checkpoint.load(tmp_path)
    assert (found.layer, found.d_model, found.injection) == EXPECTED[name]
    assert found.template in (AV_TEMPLATE, DEPTH_TEMPLATE)
    assert (found.marker, found.marker_id) == tuple(tree["tokens"].values())[:2]
    assert found.left_id == tree["tokens"].get("injection_left_neighbor_id")
    # Every value's origin is a place of this file.
    file = next(tmp_path.iterdir())
    given_fields = {key for key in KEYS if getattr(found, key) is not None}
    assert set(found.source) == given_fields | {"injection"}
    for key in given_fields:
        place, _, where = found.source[key].partition(" in ")
        assert where == str(file)
        assert place in KEYS[key]
        assert get(tree, place) is not None


def test_a_data_sets_sidecar_beside_its_parquet(tmp_path):
    parquet = tmp_path / "train.parquet"
    parquet.write_bytes(b"PAR1")
    message = (
        f"{parquet} is not a sidecar and has none next to it (looked for "
        "train.parquet.nla_meta.yaml). Pass a folder, a data set with its sidecar, or the sidecar "
        "itself."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        Checkpoint.load(parquet)
    text = yaml.safe_dump(DIALECTS["nanoNLA data set"], allow_unicode=True)
    (tmp_path / "train.parquet.nla_meta.yaml").write_text(text, "utf-8")
    found = Checkpoint.load(parquet)
    assert found.layer == 24
    assert Checkpoint.load(tmp_path) == found  # The only one in the folder.
    (tmp_path / "eval.parquet.nla_meta.yaml").write_text(text, "utf-8")
    message = (
        f"{tmp_path} has no nla_meta.yaml or nla_meta.json, but the sidecars of several data sets: "
        "eval.parquet.nla_meta.yaml, train.parquet.nla_meta.yaml. Pass the one that the "
        "checkpoint was trained on: NLA(..., "
        f"checkpoint='{tmp_path / 'eval.parquet.nla_meta.yaml'}')."
    )
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        Checkpoint.load(tmp_path)
    (tmp_path / "nla_meta.yaml").write_text(text, "utf-8")
    assert Checkpoint.load(tmp_path).source["layer"].endswith(f"{tmp_path / 'nla_meta.yaml'}")


# Bad input: what each field is told.

REQUIRED = ("layer", "d_model", "template")
WRONG: dict[str, tuple[Any, str]] = {
    "layer": ("twenty", "is 'twenty', expected a block number from 0."),
    "layers": ([3, -1], "is (3, -1), expected block numbers from 0, the layer among them."),
    "d_model": ([4096], "is [4096], expected a width from 1."),
    "template": (7, "contains {injection_char} 0 times, expected at least once: 7."),
    "ar_template": (["x"], "contains {explanation} 0 times, expected exactly once: ['x']."),
    "marker": (5, "is 5, expected the text of a token."),
    "marker_id": ("149705", "is '149705', expected a token id."),
    "left_id": (2.5, "is 2.5, expected a token id."),
    "right_id": (-1, "is -1, expected a token id."),
    "ar_suffix_ids": ({"a": 1}, "is {'a': 1}, expected token ids."),
    "vectors": (0, "is 0, expected a number of vectors from 1."),
    "base_model": (5, "is 5, expected a model's name."),
    "base_config": (5, "is 5, expected a fingerprint."),
    "system": (["Be brief."], "is ['Be brief.'], expected a text."),
    "prefill": (["<explanation>"], "is ['<explanation>'], expected a text."),
    "thinking": ("off", "is 'off', expected True, False or None."),
    "date": ("today", "is 'today', expected a date such as '2026-11-26'."),
    "baseline": ("0.9", "is '0.9', expected a Baseline(...)."),
}
OTHER = {
    "layer": 3, "d_model": 99, "template": "{injection_char}", "ar_template": "{explanation}",
    "base_model": "another/model",
}  # fmt: skip


def cases():
    for dialect, tree in DIALECTS.items():
        for key, places in KEYS.items():
            here = next((place for place in places if get(tree, place) is not None), None)
            if here is not None and key in REQUIRED:
                message = f"meta: missing {key} (at {' or '.join(places)})."
                yield dialect, key, "missing", put(tree, here, None), message
            wrong, words = WRONG[key]
            place = here or places[0]
            message = f"{key} ({place} in meta) {words}"
            if key == "d_model" and get(tree, "extraction.injection_scale") == "sqrt_d_model":
                message = "meta: extraction.injection_scale is sqrt_d_model, and d_model is [4096]."
            yield dialect, key, "mistyped", put(tree, place, wrong), message
            second = next((each for each in places if each != here), None)
            if here is not None and second is not None:
                values = {place: get(tree, place) for place in places}
                values[second] = OTHER[key]
                listed = ", ".join(
                    f"{place} = {values[place]!r}" for place in places if values[place] is not None
                )
                message = f"meta: {key} has contradictory values: {listed}."
                yield dialect, key, "contradicted", put(tree, second, OTHER[key]), message


CASES = list(cases())


@pytest.mark.parametrize(
    ("tree", "message"),
    [(tree, message) for *_, tree, message in CASES],
    ids=[f"{dialect}-{key}-{how}" for dialect, key, how, *_ in CASES],
)
@pytest.mark.usefixtures("as_users_run_it")
def test_a_field_that_is_missing_mistyped_or_contradicted(tree, message):
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        parse_sidecar(tree, "meta")


def test_every_field_of_every_dialect_is_among_the_cases():
    assert {key for _, key, *_ in CASES} == set(KEYS) == set(WRONG)
    assert {(dialect, key) for dialect, key, how, *_ in CASES if how == "missing"} == {
        (dialect, key) for dialect in DIALECTS for key in REQUIRED
    }
    assert len(CASES) == 178


MODE = "training.injection_mode is a replacement at the embedding, which contradicts"
INJECTIONS = [
    (
        {"training.injection_mode": "karvonen", "training.injection_layer": "1"},
        "meta: Injection(site='block', layer='1'): expected the number of the block whose output "
        "is written, from 0, for example Injection(layer=1).",
    ),
    (
        {"training.injection_mode": "karvonen", "training.injection_coefficient": "2"},
        "meta: Injection(scale='2'): expected a positive, finite number.",
    ),
    (
        {"training.injection_mode": ["add"]},
        "meta: training.injection_mode is ['add'], expected one of karvonen_add_norm_matched, "
        "karvonen, norm_matched_add, replace_embedding, replace, add.",
    ),
    (
        {"training.injection_mode": "replace", "training.injection_layer": 1},
        f"meta: {MODE} training.injection_layer = 1. Pass what is right: "
        "NLA(..., checkpoint=Injection(...)).",
    ),
    (
        {"training.injection_mode": "replace", "training.injection_coefficient": 2.0},
        f"meta: {MODE} training.injection_coefficient = 2.0. Pass what is right: "
        "NLA(..., checkpoint=Injection(...)).",
    ),
    *(
        (
            {"training.injection_mode": "replace", "extraction.injection_scale": scale},
            f"meta: extraction.injection_scale is {scale!r}, but training.injection_mode is a "
            "replacement, which needs the L2 norm that the vector is scaled to; it has no default. "
            "Pass it: NLA(..., checkpoint=Injection('replace', 'embedding', None, 150.0)).",
        )
        for scale in ("raw", "none")
    ),
    (
        {"extraction.injection_scale": -3},
        "meta: Injection(scale=-3): expected a positive, finite number.",
    ),
    (
        {"extraction.norm": "whitened"},
        "meta: extraction.norm is 'whitened'. This verbalizer was trained on whitened vectors, but "
        "nnsight_nla supports raw residuals only: the texts would be silently wrong.",
    ),
]


@pytest.mark.parametrize(("changes", "message"), INJECTIONS)
@pytest.mark.usefixtures("as_users_run_it")
def test_an_injection_that_is_mistyped_or_contradicted(changes, message):
    tree = DIALECTS["released, schema 2"]
    for place, value in changes.items():
        tree = put(tree, place, value)
    with pytest.raises(CheckpointError, match=f"^{re.escape(message)}$"):
        parse_sidecar(tree, "meta")


def test_a_third_partys_mode_is_read_and_written(monkeypatch):
    monkeypatch.setitem(OPERATIONS, "blend", lambda hidden, vectors, scale: hidden + vectors)
    tree = put(DIALECTS["nanoNLA data set"], "training.injection_mode", "blend")
    assert parse_sidecar(tree, "meta").injection == Injection("blend", "embedding", None)
    tree["training"].update(injection_layer=3, injection_coefficient=8)
    found = parse_sidecar(tree, "meta")
    assert found.injection == Injection("blend", "block", 3, 8.0)
    assert parse_sidecar(found.to_sidecar("av"), "meta") == found


# Data sets of successors.

SUCCESSORS = {
    # A prefix extractor: the kind is in the version.
    "kind in the version": {
        "schema_version": "nla_dataset_meta.v1",
        "stage": "base_explained",
        "extraction": {"base_model": "you/t", "d_model": 8, "layer_index": 3, "norm": "none"},
    },
    # Vision-language models: flat, under a name of their own.
    "flat": {
        "kind": "llava_nla_dataset",
        "schema_version": 1,
        "base_model": "you/t",
        "d_model": 8,
        "layer_index": 3,
        "activation_norm": "none",
    },
    # Future lens: several layers, of which one is the scalar entry.
    "several layers": {
        "kind": "nla_dataset",
        "schema_version": 1,
        "extraction": {"base_model": "you/t", "d_model": 8, "layer_index": 3, "norm": "none"},
        "future_lens": {"layer_indices": [1, 3]},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SUCCESSORS))
def test_a_data_set_of_a_successor_says_where_its_vectors_come_from(name, tmp_path):
    tree = SUCCESSORS[name]
    assert check_supported(tree, "s") is tree
    assert Origin.from_sidecar(tree, "s") == Origin("you/t", 3, 8, "none")
    fields, _ = find_fields(tree, "s")
    assert (fields["layer"], fields["base_model"], fields["d_model"]) == (3, "you/t", 8)
    assert fields.get("layers") == ([1, 3] if name == "several layers" else None)
    # As the input of a training and of a run.
    file = tmp_path / "rows.parquet"
    rows = {"activation_vector": [[1.0] * 8], "response": ["About Rome."], "doc_id": ["a"]}
    pq.write_table(pa.table(rows), file)
    (tmp_path / "rows.parquet.nla_meta.yaml").write_text(yaml.safe_dump(tree))
    assert Published(file).meta["layer"] == 3
    assert open_source(file).origin.layer == 3


def depth(number: int, **changes):
    """An entry of ``extraction.checkpoints``, as Anwen0507/trajectory_natural_language_transcoders
    writes it: the number of completed blocks, 0 being the embedding."""
    name = f"block_{number:02d}" if number else "embedding"
    kind, layer = ("block_output", number - 1) if number else ("embedding", None)
    entry = {"name": name, "depth": number, "kind": kind, "layer_index": layer}
    return {**entry, "final_norm_applied": False, **changes}


def trajectory(*entries, layer=None):
    return {
        "dataset_id": "base_t_C0-2-4_0123abcd",
        "stage": "base",
        "row_count": 1,
        "extraction": {
            "base_model": "you/t", "d_model": 8, "layer_index": layer, "norm": "none",
            "corpus": "c", "corpus_slice": {"start": 0, "length": 1}, "positions_per_doc": 3,
            "checkpoints": list(entries),
        },
        "kind": "nla_dataset",
        "schema_version": 2,
        "keep_debug_metadata": True,
    }  # fmt: skip


def test_a_data_set_of_several_blocks_says_where_each_column_comes_from(tmp_path):
    """The file of stage 0: a column for the embedding and for each block."""
    file = tmp_path / "base.parquet"
    vectors = {f"activation_{name}": [[1.0] * 8] for name in ("embedding", "block_02", "block_04")}
    pq.write_table(pa.table({**vectors, "activation_other": [[1.0] * 8], "doc_id": ["a"]}), file)
    tree = trajectory(depth(0), depth(2), depth(4, final_norm_applied=True))
    (tmp_path / "base.parquet.nla_meta.yaml").write_text(yaml.safe_dump(tree))
    found = open_source(file, vector="activation_block_02").origin
    assert found == Origin("you/t", 1, 8, "none")
    assert found.source["layer"] == "extraction.checkpoints in base.parquet.nla_meta.yaml"
    for column, message in (
        ("activation_block_04", "'block_04' is after the final norm. A verbalizer reads"),
        ("activation_embedding", "'embedding' is of kind 'embedding'. A verbalizer reads"),
        ("activation_other", "and not of which one column activation_other is"),
    ):
        with pytest.raises(CheckpointError, match=message):
            open_source(file, vector=column)
    with pytest.raises(NLAError, match="vector='activation_block_02'"):
        open_source(file)


def test_a_data_set_of_one_block_says_its_layer_twice(tmp_path):
    """The file of stage 3, in which one block was chosen."""
    file = tmp_path / "av.parquet"
    rows = {
        "activation_vector": [[1.0] * 8], "response": ["About Rome."], "doc_id": ["a"],
        "activation_checkpoint": ["block_04"], "activation_depth": [4], "activation_layer": [3],
    }  # fmt: skip
    pq.write_table(pa.table(rows), file)
    sidecar = tmp_path / "av.parquet.nla_meta.yaml"
    for layer in (3, None):
        sidecar.write_text(yaml.safe_dump(trajectory(depth(4), layer=layer)))
        assert Published(file).origin == Origin("you/t", 3, 8, "none")
        assert open_source(file).origin.layer == 3
    sidecar.write_text(yaml.safe_dump(trajectory(depth(4), layer=4)))
    with pytest.raises(CheckpointError, match=r"is 4, but layer .*checkpoints .* is 3"):
        open_source(file)
    sidecar.write_text(yaml.safe_dump(trajectory(depth(4, layer_index="3"), layer=None)))
    with pytest.raises(CheckpointError, match="expected a block number from 0"):
        open_source(file)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": "nla_dataset_meta.v9"}, r"schema_version is 'nla_dataset_meta\.v9'"),
        ({"schema_version": "other_meta.v1"}, "kind is None, expected one of"),
        ({"format": "nla_av_sft_multilayer_concat"}, "vectors of several layers in one. Split"),
        ({"activation_norm": "whitened_zca", "extraction": {}}, "norm is 'whitened_zca'"),
    ],
)
def test_a_data_set_that_cannot_be_read_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        check_supported({**SUCCESSORS["kind in the version"], **changes}, "s")


# Presets fill gaps.


def test_a_known_repository_gets_from_its_preset_what_no_sidecar_says():
    name = "kitft/nla-qwen2.5-7b-L20-av"
    tree = put(DIALECTS["released, schema 2"], "base_checkpoint", None)
    found = parse_sidecar(tree, "meta", name)
    assert found.baseline == Baseline.published("Qwen/Qwen2.5-7B-Instruct")
    assert found.source["baseline"] == found.source["base_model"] == f"preset {name}"
    assert found.source["layer"] == "extraction_layer_index in meta"
    assert parse_sidecar(tree, "meta").baseline is None
    # Of another layer it is another checkpoint, whatever its name.
    assert parse_sidecar(put(tree, "extraction_layer_index", 19), "meta", name).baseline is None


# Anything at all.

leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
anything = st.recursive(
    leaf, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(leaf, inner, max_size=2)
)
everywhere = [
    *sorted({place for places in KEYS.values() for place in places}),
    *("kind", "schema_version", "extraction", "tokens", "critic", "ar", "training"),
    *("prompt_templates", "training.injection_mode", "training.injection_layer"),
    *("training.injection_coefficient", "extraction.injection_scale", "extraction.norm"),
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(sorted(DIALECTS)),
    st.dictionaries(st.sampled_from(everywhere), anything, max_size=3),
    st.sampled_from(["", *PRESETS]),
)
def test_arbitrary_yaml_in_any_dialect_is_read_or_refused(dialect, changes, name):
    tree = copy.deepcopy(DIALECTS[dialect])
    for place, value in changes.items():
        *above, last = place.split(".")
        node: Any = tree
        for key in above:
            node = node.get(key) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node[last] = value
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # As users run it.
        try:
            found = parse_sidecar(tree, "meta", name)
            assert isinstance(found, Checkpoint)
            # What was read can be described, filled and written, or is refused by name again.
            found.at_depth(found.layer + 1).to_sidecar("av")
        except NLAError:
            return


def test_the_fixtures_are_not_edited_by_reading_them():
    before = copy.deepcopy(DIALECTS)
    for tree in DIALECTS.values():
        parse_sidecar(tree, "meta")
    assert before == DIALECTS
