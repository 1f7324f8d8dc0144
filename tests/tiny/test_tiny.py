"""The embedded pair: what ships, what it is worth, and that its build makes what loads."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nnsight_nla import Checkpoint, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE
from nnsight_nla.tiny import build as tiny_build
from nnsight_nla.tiny import evaluate
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.explanations import SLOTS, parse
from nnsight_nla.tiny.facts import SUBJECTS, held_out_pairs
from nnsight_nla.tiny.made_up import claim_rates
from nnsight_nla.tiny.target import TargetSettings, train_target
from nnsight_nla.training import Settings

FOLDERS = tiny.paths()


def shipped_files():
    return [file for folder in FOLDERS.values() for file in folder.iterdir()]


def test_the_shipped_weights_are_small_and_in_half_precision():
    assert sum(file.stat().st_size for file in shipped_files()) <= 12e6
    for folder in FOLDERS.values():
        for weight in load_file(folder / "model.safetensors").values():
            assert weight.dtype == torch.float16


def test_the_shipped_files_name_no_place_or_time_of_their_making():
    for file in shipped_files():
        if file.suffix in (".json", ".yaml", ".jinja"):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"[\"' ]/\w+/\w+", text), f"an absolute path in {file}"
            for leak in ("is_local", "local_files_only", "name_or_path", "created_at"):
                assert leak not in text, f"{leak} in {file}"


@pytest.mark.parametrize("half", ["av", "ar"])
def test_the_sidecars_are_complete(half):
    checkpoint = Checkpoint.load(FOLDERS[half])
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
    with torch.no_grad():
        rows = examples.training_rows()
    assert rows[0]["prompt"][0]["content"].count("<INJECT>") == 1
    assert rows[0]["response"] == f"<explanation>\n{examples.explanations[0]}\n</explanation>"


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


@pytest.mark.measured
def test_the_pair_is_as_good_as_promised(model, nla, capsys):
    figures = evaluate.measure(model, nla, documents=60, pairs=5)
    with capsys.disabled():
        sys.stdout.write(f"\n{evaluate.markdown(figures)}\n")
    assert evaluate.out_of_bounds(figures) == []


def test_the_shipped_figures_are_in_their_bounds():
    figures = json.loads(evaluate.FIGURES.read_text())
    assert evaluate.out_of_bounds(figures) == []
    for vector in ("true", "null", "random", "shuffled"):
        assert list(figures["held_out"][vector]) == [*SLOTS, "exact"]


def test_a_figure_that_drops_is_named(monkeypatch, capsys):
    figures = json.loads(evaluate.FIGURES.read_text())
    monkeypatch.setattr(evaluate, "load", lambda: (None, None))
    monkeypatch.setattr(evaluate, "measure", lambda model, nla: figures)
    assert evaluate.main([]) == 0
    assert "Every figure is in its bounds." in capsys.readouterr().out
    figures["held_out"]["true"]["subject"] = 0.5
    assert evaluate.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == figures
    assert evaluate.main(["--markdown"]) == 1
    assert "| true | 0.500 |" in capsys.readouterr().out
    assert evaluate.main([]) == 1
    assert "held_out/true/subject is 0.500, expected 0.95 to 1." in capsys.readouterr().out


def test_a_target_is_what_its_seed_says(model):
    settings = TargetSettings(steps=2, batch_size=4, warmup=1)
    first, again = (train_target(model.tokenizer, settings) for _ in range(2))
    other = train_target(model.tokenizer, TargetSettings(2, 4, warmup=1, seed=1))
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_build_makes_folders_that_load_and_measures_them(model, monkeypatch, tmp_path, capsys):
    """Two steps train nothing, which the figures say: that build fails, and nothing else does."""
    threads = torch.get_num_threads()
    shipped = json.loads(evaluate.FIGURES.read_text())

    def measure(target, nla):
        with target.trace("People in Paris speak"):
            thought = nla.explain(nla.layer(target).output[0, -1])
        assert isinstance(thought.text, str)
        assert nla.reconstruct("About Paris.").shape == (128,)
        assert nla.checkpoint.injection == Checkpoint.load(FOLDERS["av"]).injection
        nla.sampling = Sampling(max_new_tokens=20)
        return evaluate.measure(target, nla, documents=2, pairs=1)

    monkeypatch.setattr(tiny_build, "train_tokenizer", lambda: model.tokenizer)
    monkeypatch.setattr(tiny_build, "TARGET_SETTINGS", TargetSettings(steps=2, batch_size=4))
    monkeypatch.setattr(tiny_build, "DOCUMENTS", 2)
    monkeypatch.setattr(tiny_build, "AV_SETTINGS", Settings(steps=1, batch_size=2))
    monkeypatch.setattr(tiny_build, "AR_SETTINGS", Settings(steps=1, batch_size=2))
    monkeypatch.setattr(tiny_build, "measure", measure)
    assert tiny_build.main(["--out", str(tmp_path)]) == 1
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "verbalizer: step 1 of 1, loss" in said
    assert "held_out/true/subject is 0.000, expected 0.95 to 1." in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == shipped.keys()
    assert {folder.name for folder in Path(tmp_path, "weights").iterdir()} == set(FOLDERS)


def test_a_verbalizer_that_says_nothing_is_measured_too(model, nla):
    """As one is that was hardly trained: its rows count as ones without the true line."""
    held = collect(model, sorted(held_out_pairs()), documents=4, seed=7)

    class Terse:
        """Says every other text."""

        claims = staticmethod(nla.claims)

        def explain(self, vectors):
            texts = nla.explain(vectors).text
            return SimpleNamespace(text=[t * (i % 2) for i, t in enumerate(texts)])

    every, half = claim_rates(nla, held), claim_rates(Terse(), held)
    assert half["rows"] == every["rows"] > 4
    assert every["ranked"] == 1
    assert half["ranked"] == (half["rows"] // 2) / half["rows"]
    assert half["true_carries"] > half["made_up_carries"]
