"""What vectors say about themselves is read wherever it is written, and compared."""

import json
import pickle
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla import Checkpoint, CheckpointError, NLAError, Origin
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE

CHECKPOINT = Checkpoint(
    layer=3, d_model=128, template=AV_TEMPLATE, marker="x", marker_id=5, base_model="you/t"
)
MINE = Origin("you/t", 3, 128, "none", "residual")
OTHERS = {"model": "you/other", "layer": 1, "d_model": 64, "norm": "whitened", "kind": "difference"}

origins = st.builds(
    Origin,
    model=st.none() | st.sampled_from(["you/t", "you/other"]),
    layer=st.none() | st.integers(0, 40),
    d_model=st.none() | st.integers(1, 256),
    norm=st.none() | st.sampled_from(["none", "whitened", "unit"]),
    kind=st.none() | st.sampled_from(["residual", "difference", "direction"]),
)


def sidecar(origin):
    names = {"model": "base_model", "layer": "layer_index"}
    return {"extraction": {names.get(k, k): v for k, v in origin.to_dict().items()}}


@given(origins)
def test_what_is_written_is_read_wherever_it_stands(origin):
    tree = sidecar(origin)
    assert Origin.from_sidecar(tree, "s") == origin
    assert Origin.from_metadata({"format": "pt", "nla_meta": json.dumps(tree)}, "s") == origin
    flat = {k: str(v) for k, v in origin.to_dict().items()}
    assert Origin.from_metadata(flat, "s") == origin
    columns = {"activation_layer": [origin.layer] * 3, "base_model": [origin.model] * 3}
    assert Origin.from_columns(columns, "s") == Origin(origin.model, origin.layer)
    assert pickle.loads(pickle.dumps(origin)) == origin


@given(origins)
def test_a_claim_that_differs_is_refused_and_no_other(origin):
    said, expected = origin.to_dict(), MINE.to_dict()
    wrong = [name for name in said if said[name] != expected[name]]
    found = origin.differences(Origin.of(CHECKPOINT))
    assert [phrase.split()[0] for phrase in found] == wrong
    assert origin.check(CHECKPOINT, "it", claims="ignore") == found
    if wrong:
        with pytest.raises(NLAError, match=r"^it does not hold the vectors"):
            origin.check(CHECKPOINT, "it")
    else:
        assert origin.check(CHECKPOINT, "it") == []


@given(origins)
def test_the_sidecar_of_an_output_says_what_the_input_said(origin):
    ignored = origin.differences(Origin.of(CHECKPOINT))
    tree = origin.to_sidecar(CHECKPOINT, ignored)
    tree = yaml.safe_load(yaml.safe_dump(tree))
    assert Origin.from_sidecar(tree, "s").to_dict().items() >= origin.to_dict().items()
    # What the verbalizer takes for granted is no claim of the vectors.
    assert set(Origin.from_sidecar(tree, "s").to_dict()) <= {*origin.to_dict(), "config"}
    assert tree.get("claims_ignored", []) == ignored
    assert tree["kind"] == "nla_dataset"


@pytest.mark.parametrize("name", OTHERS)
def test_a_refusal_names_claim_place_and_way_out(name):
    origin = Origin.from_sidecar(sidecar(replace(MINE, **{name: OTHERS[name]})), "a.nla_meta.yaml")
    with pytest.raises(NLAError) as caught:
        origin.check(CHECKPOINT, "a.parquet")
    said = str(caught.value)
    assert f"{name} (" in said
    assert f"in a.nla_meta.yaml) is {OTHERS[name]}, expected {MINE.to_dict()[name]}" in said
    assert said.endswith("to use them all the same, pass claims='ignore'.")


def test_a_kind_is_no_reason_to_refuse_where_any_can_be_explained():
    assert Origin(kind="direction").check(CHECKPOINT, "it", any_kind=True) == []


@pytest.mark.parametrize(
    ("entries", "layer"),
    [
        ({"hook_name": "blocks.3.hook_resid_post"}, 3),
        ({"hook_name": "blocks.4.hook_resid_pre"}, 3),
        ({"hook_point": "blocks.3.hook_out"}, 3),
        ({"hook_name": "blocks.0.hook_resid_pre"}, None),  # The embedding: no block's output.
        ({"hook_name": "blocks.3.attn.hook_z"}, None),
        ({"layer": "3"}, 3),
        ({"activation_layer": "3.0"}, 3),
        ({"extraction": '{"layer_index": 3}'}, 3),
        ({"layer": "three"}, None),
        ({"layer": "{"}, None),
        ({"norm": "15.2", "format": "pt", "kind": "nla_dataset"}, None),
    ],
)
def test_metadata_in_the_words_of_other_projects(entries, layer):
    found = Origin.from_metadata(entries, "a.safetensors")
    assert found == Origin(layer=layer)


def test_rows_that_differ_claim_nothing_together():
    assert Origin.from_columns({"activation_layer": [3, 1, None]}, "t") == Origin()
    assert Origin.from_columns({"activation_layer": [3, None, 3.0]}, "t") == Origin(layer=3)


def test_contradictions_are_named():
    sides = Origin.from_sidecar(sidecar(MINE), "a.yaml"), Origin.from_columns({"layer": [1]}, "a")
    with pytest.raises(CheckpointError, match=r"layer \(extraction.layer_index in a.yaml\) is 3, "
                       r"but layer \(column layer of a\) is 1\. Correct the one"):  # fmt: skip
        sides[0].joined(sides[1])
    cached = Origin(model="models--you--t/snapshots/0123abc")
    assert MINE.joined(cached).model == "you/t"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"layer": "three"}, "layer is 'three', expected a block number from 0"),
        ({"layer": True}, "layer is True"),
        ({"model": 7}, "model is 7, expected a model's name"),
        ({"kind": "thought"}, "kind is 'thought', expected residual, difference, direction"),
    ],
)
def test_a_claim_of_another_type_is_refused(value, message):
    with pytest.raises(CheckpointError, match=message):
        Origin(**value)


def test_claims_is_one_of_two_words():
    with pytest.raises(NLAError, match=r"claims='no': expected 'check' or 'ignore'"):
        MINE.check(CHECKPOINT, "it", claims="no")


def test_sidecars_of_a_file_and_of_a_folder(tmp_path):
    for name, layer in (("a.npy.nla_meta.yaml", 1), ("data/rows.parquet.nla_meta.yaml", 2)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"extraction: {{layer_index: {layer}}}")
    assert Origin.next_to(tmp_path / "a.npy").layer == 1
    assert Origin.next_to(tmp_path / "data").layer == 2
    assert Origin.next_to(tmp_path / "b.npy") == Origin()
    (tmp_path / "b.npy.nla_meta.yaml").write_text("[1]")
    with pytest.raises(CheckpointError, match="expected a mapping"):
        Origin.next_to(tmp_path / "b.npy")
