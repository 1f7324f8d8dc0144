"""The doctor: each setting broken on purpose, and the name it gives to what is broken."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, cli, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from nnsight_nla.cli import app
from nnsight_nla.doctor.examine import TEXTS, Doctor
from nnsight_nla.doctor.precheck import check
from nnsight_nla.doctor.report import Diagnosis, Figures, Finding, Variant, advantage, variant
from nnsight_nla.doctor.variants import SETTINGS, Try
from nnsight_nla.errors import InjectionError

SHORT = Sampling(max_new_tokens=60)
FOLDERS = {name: str(path) for name, path in tiny.paths().items()}


def broken(checkpoint: Checkpoint, av: str | Path = FOLDERS["av"]) -> NLA:
    return NLA(av, checkpoint=checkpoint, dtype=torch.float32)


def examined(model, nla: NLA, **options) -> Diagnosis:
    return nla.doctor(model, ar=FOLDERS["ar"], sampling=SHORT, texts=TEXTS[:3], **options)


@pytest.fixture(scope="module")
def declared(pair) -> Checkpoint:
    return pair[1].checkpoint


@pytest.fixture(scope="module")
def healthy(pair) -> Diagnosis:
    model, nla = pair
    return nla.doctor(model, sampling=SHORT)


def test_a_sound_checkpoint_is_supported(healthy, declared):
    assert healthy.ok
    assert healthy.broken == ()
    assert healthy.checkpoint == declared
    assert healthy.conclusion == "No other setting does better than what is declared."
    assert [finding.setting for finding in healthy.findings] == list(SETTINGS)
    verdicts = {finding.setting: finding.verdict for finding in healthy.findings}
    assert {name: verdicts[name] for name in ("injection mode", "injection layer", "layer")} == {
        "injection mode": "supported",
        "injection layer": "supported",
        "layer": "supported",
    }
    # Where nothing else could be tried, that is said and not passed off as evidence.
    assert {verdicts[name] for name in ("tokenizer", "template", "marker")} == {"not tried"}
    (layer,) = (finding for finding in healthy.findings if finding.setting == "layer")
    assert [(each.value, each.declared) for each in layer.variants] == [
        ("block 3", True),
        ("block 2", False),
        ("block 4", False),
    ]
    best, *others = layer.variants
    assert best.extraction == 1.0
    assert best.effect > 0.5
    assert best.cosine > 0.9
    assert all(each.cosine < best.cosine - 0.02 for each in others)
    assert (healthy.rows, healthy.judge) == (32, "reconstructor")


BREAKS = {
    "layer": {"layer": 2},
    "layer above": {"layer": 4},
    "injection mode": {"injection": Injection("replace", "embedding", None, 15.0)},
    "injection layer": {"injection": Injection("add", "block", 3)},
    "template": {"template": f"{AV_TEMPLATE}\n\nAbout a dog. About Japan. About a doctor."},
}


@pytest.mark.parametrize("setting", sorted(BREAKS))
def test_each_broken_setting_is_named(model, declared, setting):
    diagnosis = examined(model, broken(replace(declared, **BREAKS[setting])))
    assert diagnosis.broken == (setting.removesuffix(" above"),)
    assert not diagnosis.ok
    # What the evidence supports is what the pair was trained with.
    supported = diagnosis.checkpoint
    assert (supported.layer, supported.injection) == (declared.layer, declared.injection)
    assert supported.template == declared.template


def test_with_no_reconstructor_a_wrong_injection_is_still_named(model, declared):
    wrong = replace(declared, injection=Injection("add", "block", 3))
    diagnosis = broken(wrong).doctor(model, sampling=SHORT)
    assert diagnosis.broken == ("injection layer",)
    assert diagnosis.checkpoint.injection == declared.injection
    assert diagnosis.judge == "likelihood"
    assert all(each.cosine is None for finding in diagnosis.findings for each in finding.variants)


def _copied(tmp_path: Path, **files) -> Path:
    folder = tmp_path / "av"
    shutil.copytree(FOLDERS["av"], folder)
    for name, change in files.items():
        (file,) = folder.glob(f"{name}.*")
        file.write_text(change(file.read_text("utf-8")), "utf-8")
    return folder


def _shuffled(text: str) -> str:
    """The words of the vocabulary, each under another's id; marker and neighbours stay."""
    tree = json.loads(text)
    vocabulary = tree["model"]["vocab"]
    moved = [word for word, i in vocabulary.items() if i > 400]
    ids = [vocabulary[word] for word in moved]
    vocabulary.update(zip(moved, [*ids[7:], *ids[:7]], strict=True))
    return json.dumps(tree)


def test_a_foreign_tokenizer_is_named(model, declared, tmp_path):
    folder = _copied(tmp_path, tokenizer=_shuffled)
    loose = replace(declared, left_id=None, right_id=None)
    diagnosis = examined(model, broken(loose, folder))
    assert diagnosis.broken == ("tokenizer",)
    assert "the evidence supports the target's" in diagnosis.conclusion


THINK = "{% if enable_thinking is defined and enable_thinking is false %}About a duck.{% endif %}"


def test_a_thinking_block_that_training_did_not_have_is_named(model, declared, tmp_path):
    folder = _copied(tmp_path, chat_template=lambda text: text + THINK)
    diagnosis = examined(model, broken(replace(declared, thinking=False), folder))
    assert diagnosis.broken == ("thinking block",)
    assert diagnosis.checkpoint.thinking is None
    sound = examined(model, broken(declared, folder))
    assert "thinking block" not in sound.broken
    (finding,) = (each for each in sound.findings if each.setting == "thinking block")
    assert finding.variants[1].value == "off"


def test_another_marker_is_named(model, declared):
    (other,) = model.tokenizer.encode("a", add_special_tokens=False)
    wrong = replace(declared, marker="a", marker_id=other, left_id=None, right_id=None)
    diagnosis = examined(model, broken(wrong))
    (finding,) = (each for each in diagnosis.findings if each.setting == "marker")
    assert [each.value for each in finding.variants] == [f"'a' ({other})", "'㈎' (1492)"]


def test_the_model_and_the_nla_are_as_before(pair, healthy):
    _, nla = pair
    assert nla.av.tokenizer is not None
    assert not nla.pending
    assert all(not each._forward_hooks for each in nla.av._module.modules())
    assert {each.setting for each in healthy.findings} == set(SETTINGS)


def test_what_is_written_at_the_last_block_is_not_read(pair, declared):
    """The marker's own output is all that it changes; the texts cannot depend on it, at all."""
    model, nla = pair
    doctor = Doctor(nla, model, TEXTS[:1], Sampling(max_new_tokens=20), None)
    deaf = replace(declared, injection=Injection("add", "block", 5))
    figures = doctor._figures(Try("deaf", deaf, nla.av.tokenizer))
    assert figures.effect.tolist() == [0.0] * 4
    assert not figures.reads
    assert doctor._figures(Try("sound", declared, nla.av.tokenizer)).reads
    nothing = Diagnosis((), (), deaf, reads=False, rows=4)
    assert not nothing.ok
    assert "In no setting that was tried do the texts depend on the vector" in nothing.conclusion


@pytest.mark.parametrize("texts", [[], "one text", [""], ["fine", 5], [None]])
def test_texts_that_are_none(model, nla, texts):
    message = f"texts={texts!r}: expected a list of texts for the target to read."
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        nla.doctor(model, texts=texts)


def test_a_layer_that_the_target_does_not_have(model, declared):
    deep = broken(replace(declared, layer=6))
    with pytest.raises(InjectionError, match="blocks 0 to 5, the checkpoint says block 6"):
        deep.doctor(model)


# Before any weights.


def _sidecar(tmp_path: Path, change) -> Path:
    def edit(text: str) -> str:
        tree = yaml.safe_load(text)
        change(tree)
        return yaml.safe_dump(tree, allow_unicode=True)

    return _copied(tmp_path, nla_meta=edit)


STATIC = [
    ("sidecar", lambda tree: tree["extraction"].update(norm="whitened"), "norm is 'whitened'"),
    ("sidecar", lambda tree: tree["prompt_templates"].update(av="no slot"), "has 0 times"),
    ("marker", lambda tree: tree["tokens"].update(injection_token_id=7), "says id 1492 between 32"),
    (
        "marker",
        lambda tree: tree["tokens"].update(injection_left_neighbor_id=9),
        "says id 1492 between 32 and 303",
    ),
    (
        "template",
        lambda tree: tree["prompt_templates"].update(av="㈎ {injection_char}"),
        "has 0 places",
    ),
    ("tokenizer", lambda tree: tree["tokens"].update(injection_char="㊙"), "tokenizes to"),
]


@pytest.mark.parametrize(("setting", "change", "words"), STATIC)
def test_what_cannot_be_rendered_is_named_before_any_weights(tmp_path, setting, change, words):
    folder = _sidecar(tmp_path, change)
    (folder / "model.safetensors").unlink()
    finding = check(folder)
    assert isinstance(finding, Finding)
    assert (finding.setting, finding.verdict) == (setting, "fails")
    assert words in finding.note
    ran = CliRunner().invoke(app, ["doctor", str(folder), "--json"])
    assert ran.exit_code == 1
    told = json.loads(ran.stdout)
    assert (told["ok"], told["broken"], told["checkpoint"]) == (False, [setting], None)
    assert told["conclusion"].startswith(f"The {setting} cannot be used: ")


def test_a_sound_checkpoint_can_be_rendered():
    assert check(FOLDERS["av"]) is None


# The command line.


def test_the_command_line_prints_a_table_and_exits_zero(monkeypatch):
    monkeypatch.setattr(cli.doctor, "out", Console(width=140))
    command = ["doctor", FOLDERS["av"], "--target", FOLDERS["target"], "--ar", FOLDERS["ar"]]
    ran = CliRunner().invoke(app, [*command, "--max-new-tokens", "60"])
    assert ran.exit_code == 0, ran.output
    for word in ("injection layer", "block 4", "supported", "AR cosine", "No other setting does"):
        assert word in ran.stdout


def test_the_command_line_exits_one_when_the_declared_one_loses(tmp_path):
    folder = _sidecar(tmp_path, lambda tree: tree["training"].update(injection_layer=3))
    command = ["doctor", str(folder), "--target", FOLDERS["target"], "--ar", FOLDERS["ar"]]
    ran = CliRunner().invoke(app, [*command, "--max-new-tokens", "60", "--json"])
    assert ran.exit_code == 1, ran.output
    told = json.loads(ran.stdout)
    assert told["broken"] == ["injection layer"]
    assert told["checkpoint"]["injection"]["layer"] == 1
    losing = next(each for each in told["findings"] if each["setting"] == "injection layer")
    assert (losing["verdict"], losing["best"]) == ("loses", "block 1")


# The statistics, by hand.


def figures(cosine=None, likelihood=-0.1, effect=1.0, proper=True, others=0.2) -> Figures:
    rows = 4
    each = torch.arange(rows) * 0.001  # Rows differ a little.
    return Figures(
        torch.full((rows,), proper),
        effect + each,
        likelihood + each,
        None if cosine is None else cosine + each,
        None if cosine is None else torch.full((rows,), others),
    )


def test_an_advantage_is_a_share_of_what_is_left_to_reconstruct():
    # Both reach 0.9 and 0.6 of cosine over 0.2: (0.9 - 0.2) / 0.8 - (0.6 - 0.2) / 0.8.
    assert advantage(figures(0.9), figures(0.6)) == pytest.approx(0.375)
    assert advantage(figures(0.6), figures(0.9)) == 0
    # In a family with a large shared mean the same share is a small difference.
    assert advantage(figures(0.99, others=0.96), figures(0.97, others=0.96)) == pytest.approx(
        0.5, abs=1e-4
    )
    # A row without a proper explanation carries nothing, whatever was reconstructed from it.
    assert advantage(figures(0.6), figures(0.9, proper=False)) == pytest.approx(0.5, abs=0.01)


def test_a_difference_inside_its_noise_is_none():
    noisy = figures(0.6)
    swings = torch.tensor([0.4, -0.4, 0.5, -0.2])
    swinging = replace(noisy, cosine=noisy.cosine + swings)
    assert (swings.mean() / 0.8).item() > 0.05  # Above the least that counts.
    assert advantage(swinging, noisy) == 0


def test_without_a_reconstructor_a_sure_text_must_still_depend_on_the_vector():
    assert advantage(figures(likelihood=-0.01), figures(likelihood=-0.1)) == pytest.approx(0.09)
    assert advantage(figures(likelihood=-0.01, effect=0.0), figures(likelihood=-0.1)) == 0
    assert advantage(figures(likelihood=-0.01, effect=0.4), figures(likelihood=-0.1)) == 0
    assert advantage(figures(likelihood=-0.01, proper=False), figures(likelihood=-0.1)) == 0


def test_a_variants_record():
    shown = variant("block 3", figures(0.8), declared=True)
    assert shown.cosine == pytest.approx(0.8015)
    assert (shown.extraction, shown.declared) == (1.0, True)
    assert variant("block 3", figures(0.8, proper=False)).cosine == 0
    assert variant("block 9", "no such block") == Variant("block 9", False, error="no such block")
