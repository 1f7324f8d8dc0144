"""The built-in descriptions of published checkpoints."""

import re

import pytest

from nnsight_nla import Baseline, Checkpoint, Injection
from nnsight_nla.checkpoint import dialects
from nnsight_nla.checkpoint.checkpoint import (
    AR_TEMPLATE,
    AV_TEMPLATE,
    EXPLANATION_SLOT,
    MARKER_SLOT,
    PRESETS,
    parse_sidecar,
)
from nnsight_nla.checkpoint.oracle_presets import ORACLE_FIELDS
from nnsight_nla.checkpoint.presets import PRESET_FIELDS
from nnsight_nla.errors import CheckpointError

PUBLISHED = "ceselder/nanonla-l24-av-qwen3-8b"

FAMILIES = [
    ("ceselder/nanonla-l24-av-qwen3-8b", 24, 4096, None),
    ("kitft/nla-qwen2.5-7b-L20-av", 20, 3584, 150.0),
    ("kitft/nla-gemma3-12b-L32-av", 32, 3840, 80000.0),
    ("kitft/nla-gemma3-27b-L41-av", 41, 5376, 60000.0),
    ("kitft/Llama-3.3-70B-NLA-L53-av", 53, 8192, 30.0),
]


@pytest.mark.parametrize(("name", "layer", "d_model", "scale"), FAMILIES)
def test_the_presets(name, layer, d_model, scale):
    preset = Checkpoint.preset(name)
    assert (preset.layer, preset.d_model) == (layer, d_model)
    operation = "add" if scale is None else "replace"
    assert (preset.injection.operation, preset.injection.scale) == (operation, scale)
    assert preset.template == AV_TEMPLATE
    assert preset.source["layer"] == f"preset {name}"
    published = name.startswith("kitft/")
    assert preset.baseline == (Baseline.published(preset.base_model) if published else None)
    assert set(PRESETS) == {each for each, *_ in FAMILIES} | set(ORACLE_FIELDS)


def refused(message: str):
    return pytest.raises(CheckpointError, match=f"^{re.escape(message)}$")


def test_a_preset_by_its_name_and_what_an_unknown_name_is_told():
    preset = Checkpoint.preset(PUBLISHED)
    assert (preset.layer, preset.d_model, preset.marker_id) == (24, 4096, 149705)
    assert (preset.template, preset.ar_template) == (AV_TEMPLATE, AR_TEMPLATE)
    with refused(
        f"There is no preset named 'qwen'. Built in: {', '.join(sorted(PRESETS))}. Describe any "
        "other checkpoint with NLA(..., checkpoint=Checkpoint(...))."
    ):
        Checkpoint.preset("qwen")


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_survives_as_a_sidecar(name):
    preset = Checkpoint.preset(name)
    assert parse_sidecar(preset.to_sidecar("av"), "meta") == preset
    assert preset.template.count(MARKER_SLOT) == 1
    assert preset.asks or preset.ar_template.count(EXPLANATION_SLOT) == 1


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_source_of_a_preset_names_every_field_that_it_has_and_no_other(name):
    preset = Checkpoint.preset(name)
    assert {*preset.source} == {
        key for key, value in {**PRESET_FIELDS, **ORACLE_FIELDS}[name].items() if value is not None
    }
    assert {*preset.source} <= {*dialects.KEYS, "injection"}


def test_what_no_public_source_states_is_left_to_the_live_tokenizer():
    llama = Checkpoint.preset("kitft/Llama-3.3-70B-NLA-L53-av")
    assert (llama.left_id, llama.right_id, llama.ar_suffix_ids) == (None, None, None)
    assert llama.injection == Injection("replace", "embedding", None, 30.0)
