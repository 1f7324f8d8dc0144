"""The doctor: each setting is broken on purpose, and the doctor names it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from nnsight_nla.doctor.examine import TEXTS, Doctor
from nnsight_nla.doctor.report import Diagnosis
from nnsight_nla.doctor.variants import SETTINGS, Candidate
from nnsight_nla.errors import InjectionError
from tests.helpers.hooks import left_hooks

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
    assert healthy.conclusion == "No alternative is better than the declared settings."
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
    assert not left_hooks(nla.av._module)
    assert {each.setting for each in healthy.findings} == set(SETTINGS)


def test_what_is_written_at_the_last_block_is_not_read(pair, declared):
    """The marker's own output is all that it changes; the texts cannot depend on it, at all."""
    model, nla = pair
    doctor = Doctor(nla, model, TEXTS[:1], Sampling(max_new_tokens=20), None)
    deaf = replace(declared, injection=Injection("add", "block", 5))
    figures = doctor._figures(Candidate("deaf", deaf, nla.av.tokenizer))
    assert figures.effect.tolist() == [0.0] * 4
    assert not figures.reads
    assert doctor._figures(Candidate("sound", declared, nla.av.tokenizer)).reads


@pytest.mark.parametrize("texts", [[], "one text", [""], ["fine", 5], [None]])
def test_texts_that_are_none(model, nla, texts):
    expected = "expected a list of non-empty strings for the target to read."
    message = f"texts={texts!r}: {expected}"
    with pytest.raises(InjectionError, match=f"^{re.escape(message)}$"):
        nla.doctor(model, texts=texts)


def test_a_layer_that_the_target_does_not_have(model, declared):
    deep = broken(replace(declared, layer=6))
    with pytest.raises(InjectionError, match="blocks 0 to 5, the checkpoint says block 6"):
        deep.doctor(model)
