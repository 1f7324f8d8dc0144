"""The tiny pair: the shipped files, `load()`, `figures()` and `collect()`."""

import json
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nnsight_nla import Checkpoint, tiny
from nnsight_nla.checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.explanations import SLOTS, parse
from nnsight_nla.tiny.facts import SUBJECTS, held_out_pairs

FOLDERS = tiny.paths()


def shipped_files():
    return [file for folder in FOLDERS.values() for file in folder.iterdir()]


def test_the_shipped_weights_are_small_and_in_half_precision():
    assert sum(file.stat().st_size for file in shipped_files()) <= 12e6
    for folder in FOLDERS.values():
        stored = list(folder.glob("*model.safetensors"))  # Of a whole model, or of an adapter.
        assert len(stored) == 1
        for weight in load_file(stored[0]).values():
            assert weight.dtype == torch.float16


def test_the_shipped_files_name_no_place_or_time_of_their_making():
    for file in shipped_files():
        if file.suffix in (".json", ".yaml", ".jinja"):
            # PEFT has the base's name under this key.
            text = file.read_text(encoding="utf-8").replace('"base_model_name_or_path"', "")
            assert not re.search(r"[\"' ]/\w+/\w+", text), f"an absolute path in {file}"
            for leak in ("is_local", "local_files_only", "name_or_path", "created_at"):
                assert leak not in text, f"{leak} in {file}"


@pytest.mark.parametrize("role", ["av", "ar"])
def test_the_sidecars_are_complete(role):
    checkpoint = Checkpoint.load(FOLDERS[role])
    assert checkpoint.layer == 3
    assert checkpoint.d_model == 128
    assert checkpoint.template == AV_TEMPLATE
    assert checkpoint.ar_template == AR_TEMPLATE
    assert checkpoint.marker == "㈎"
    assert None not in (checkpoint.left_id, checkpoint.right_id, checkpoint.ar_suffix_ids)
    assert vars(checkpoint.injection) == {
        "operation": "add",
        "site": "block",
        "layer": 1,
        "scale": None,
    }
    assert checkpoint.source["injection"].startswith("training.injection_mode")


def test_the_reconstructor_is_cut_after_block_k():
    config = json.loads((FOLDERS["ar"] / "config.json").read_text())
    assert config["num_hidden_layers"] == len(config["layer_types"]) == 4
    head = load_file(FOLDERS["ar"] / "value_head.safetensors")
    assert {name: tuple(weight.shape) for name, weight in head.items()} == {"weight": (128, 128)}


def test_importing_tiny_imports_nothing_else():
    code = (
        "import nnsight_nla, sys; before = set(sys.modules); import nnsight_nla.tiny; "
        "assert set(sys.modules) - before <= {'nnsight_nla.tiny'}, set(sys.modules) - before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_target_knows_its_facts_from_a_bare_prompt(model):
    prompts = {f"People in {s.name} speak": s for s in SUBJECTS.values() if s.kind == "city"}
    with torch.no_grad(), model.trace(list(prompts)):
        token = model.lm_head.output[:, -1].argmax(dim=-1).save()
    said = [word.strip() for word in map(model.tokenizer.decode, token)]
    assert said == [subject.facts["language"] for subject in prompts.values()]


def test_examples_are_the_residuals_of_their_own_prompts(model, nla):
    examples = collect(model, sorted(held_out_pairs()), documents=4, seed=5)
    for vector, prompt in zip(examples.vectors, examples.prompts, strict=True):
        with torch.no_grad(), model.trace(prompt):
            alone = nla.layer(model).output[0, -1].save()
        torch.testing.assert_close(vector, alone, rtol=1e-3, atol=1e-4)


def test_an_explanation_follows_a_patch(model, nla):
    with model.trace("People in Paris speak"):
        paris = model.model.layers[0].output[0, 2].save()
    with model.trace("People in Tokyo speak"):
        before = nla.explain(nla.layer(model).output[0, -1])
    with model.trace("People in Tokyo speak"):
        residual = model.model.layers[0].output.clone()
        residual[0, 2] = paris
        model.model.layers[0].output = residual
        after = nla.explain(nla.layer(model).output[0, -1])
    assert (parse(before.text).subject, parse(before.text).next) == ("Tokyo", "Japanese")
    assert (parse(after.text).subject, parse(after.text).next) == ("Paris", "French")


def test_the_shipped_figures_have_every_slot():
    held_out = tiny.figures()["held_out"]
    for vector in ("true", "null", "random", "shuffled"):
        assert list(held_out[vector]) == [*SLOTS, "exact"]


@pytest.mark.parametrize("name", ["evaluate", "build"])
def test_the_old_command_names_the_new_one(name):
    command = [sys.executable, "-m", f"nnsight_nla.tiny.{name}", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (1, "")
    (line,) = ran.stderr.splitlines()
    assert line.endswith(f"python -m tutorials.recipes.tiny.{name}")
