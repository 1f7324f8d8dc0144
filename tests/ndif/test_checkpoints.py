"""Other people's checkpoints on the host: doctored, with adapters, with an injection of their own.

The texts and the verdicts are those of this machine, and no weights come here.
"""

import shutil
from dataclasses import replace

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from nnsight_nla import NLA, Injection, ReconstructionError, Sampling, tiny
from nnsight_nla.cli import app
from nnsight_nla.core.injection import OPERATIONS
from nnsight_nla.models.reconstructor_files import HEAD

PATHS = tiny.paths()
PARIS = "What a lovely day! People in Paris speak"
DOCTORED = [
    "What a lovely day! People in Paris speak French.",
    "This story is about a dog. The dog lives in the house.",
]
SHORT = Sampling(max_new_tokens=12)
TEXTS = ["About Paris, the capital of France.", "Short."]
K = 3


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture
def target(by_path) -> TransformersModel:
    return TransformersModel(by_path(PATHS["target"]), task="text-generation")


def weightless(*models) -> bool:
    return all(each.device.type == "meta" for m in models for each in m._module.parameters())


# ---- the doctor ------------------------------------------------------------------------------


def test_a_broken_setting_is_named_from_afar(ndif, target, by_path):
    """Target, verbalizer and reconstructor on the host: the findings are the local ones."""
    model, nla = tiny.load()
    wrong = replace(nla.checkpoint, layer=K - 1)
    here = NLA(PATHS["av"], checkpoint=wrong, dtype=torch.float32)
    there = NLA(by_path(PATHS["av"]), checkpoint=wrong, remote=True)
    by_path(PATHS["ar"])
    options = {"ar": PATHS["ar"], "texts": DOCTORED}
    found = there.doctor(target, remote=True, **options)
    expected = here.doctor(model, **options)
    assert found.broken == expected.broken == ("layer",)
    assert found.checkpoint.layer == K
    assert not found.ok
    for one, other in zip(found.findings, expected.findings, strict=True):
        if one.setting != "tokenizer":  # Of a tokenizer the host knows only the checkpoint's own.
            assert (one.setting, one.verdict, one.best) == (
                other.setting, other.verdict, other.best,
            )  # fmt: skip
    assert weightless(target, there.av)


def test_the_command_doctors_from_afar(ndif, by_path, monkeypatch):
    monkeypatch.setattr("nnsight_nla.doctor.examine.TEXTS", DOCTORED)
    arguments = ["--target", by_path(PATHS["target"]), "--ar", by_path(PATHS["ar"]), "--remote"]
    ran = CliRunner().invoke(app, ["doctor", by_path(PATHS["av"]), *arguments])
    assert ran.exit_code == 0, ran.output
    assert "No alternative is better" in ran.output


# ---- a third party's injection ---------------------------------------------------------------


def blend(hidden, vectors, scale):
    """The marker's own residual and the vector, half and half, at `scale` times its length."""
    wide, raw = hidden.float(), vectors.float().to(hidden.device)
    length = wide.norm(dim=-1, keepdim=True)
    new = wide / 2 + scale * length * raw / raw.norm(dim=-1, keepdim=True)
    return new.to(hidden.dtype)


def test_an_operation_of_ones_own_runs_on_the_host(either_ndif, by_path, monkeypatch):
    monkeypatch.setitem(OPERATIONS, "blend", blend)
    injection = Injection("blend", "block", 1, 0.7)
    vectors = torch.randn(3, 128, generator=torch.Generator().manual_seed(2))
    here = NLA(PATHS["av"], checkpoint=injection, dtype=torch.float32, sampling=SHORT)
    there = NLA(by_path(PATHS["av"]), checkpoint=injection, remote=True, sampling=SHORT)
    usual = NLA(PATHS["av"], dtype=torch.float32, sampling=SHORT)
    assert there.explain(vectors).raw == here.explain(vectors).raw
    assert here.explain(vectors).raw != usual.explain(vectors).raw
    assert there.explain(vectors).receipt.operation == "blend"
    assert weightless(there.av)


# ---- adapters --------------------------------------------------------------------------------


def lora(folder, seed, blocks=None, **options):
    """A PEFT adapter with random matrices, loud enough to be heard."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(PATHS["target"], dtype=torch.float32)
    if blocks is not None:
        base.model.layers = base.model.layers[:blocks]
        base.config.num_hidden_layers = blocks
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, **options
    )
    model = get_peft_model(base, config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return folder


def with_head(folder):
    head = torch.randn(128, 128, generator=torch.Generator().manual_seed(3)) / 11
    save_file({"weight": head}, folder / HEAD)
    return folder


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A verbalizer's and a reconstructor's; the latter says which blocks it was trained on."""
    av = lora(tmp_path_factory.mktemp("av"), 0)
    shutil.copy(PATHS["av"] / "nla_meta.yaml", av)
    below = {"layers_to_transform": list(range(K + 1))}
    return av, with_head(lora(tmp_path_factory.mktemp("ar"), 1, K + 1, **below))


def test_both_adapters_run_on_the_targets_deployment(ndif, target, adapters):
    av, ar = adapters
    there = NLA.on(target, av=av, ar=ar, remote=True, sampling=SHORT)
    model = TransformersModel(str(PATHS["target"]), task="text-generation", dtype=torch.float32)
    here = NLA.on(model, av=av, ar=ar, sampling=SHORT)
    with target.trace(PARIS, remote=True):
        thought = there.explain(there.layer(target).output[0, -2:])
        logits = target.lm_head.output.save()
    with model.trace(PARIS):
        expected = here.explain(here.layer(model).output[0, -2:])
        plain = model.lm_head.output.save()
    assert thought.raw == expected.raw
    near = {"atol": 2e-4, "rtol": 2e-4}
    torch.testing.assert_close(there.reconstruct(TEXTS), here.reconstruct(TEXTS), **near)
    torch.testing.assert_close(logits, plain.detach(), **near)  # the user's trace is the base's
    with target.trace(PARIS, remote=True):
        after = target.lm_head.output.save()
    assert torch.equal(after, logits)
    assert weightless(target, there.av, there.ar)


def test_a_peft_reconstructor_beside_a_verbalizer_of_its_own(ndif, by_path, adapters):
    by_path(PATHS["target"])
    there = NLA(by_path(PATHS["av"]), ar=adapters[1], remote=True)
    here = NLA(PATHS["av"], ar=adapters[1], dtype=torch.float32)
    found, expected = there.reconstruct(TEXTS), here.reconstruct(TEXTS)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)
    plain = NLA(PATHS["av"], ar=PATHS["ar"], dtype=torch.float32).reconstruct(TEXTS)
    assert (found - plain).abs().max() > 1e-2
    assert weightless(there.ar)


def test_an_adapter_that_does_not_say_which_blocks_it_has_is_told_what_to_say(
    ndif, target, adapters, tmp_path
):
    silent = with_head(lora(tmp_path, 1, K + 1))
    there = NLA.on(target, av=adapters[0], ar=silent, remote=True)
    with pytest.raises(ReconstructionError, match=r'"layers_to_transform": \[0, 1, 2, 3\]'):
        there.reconstruct(TEXTS)
