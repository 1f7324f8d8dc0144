"""Attention has the soft cap of the configuration, or there is a warning."""

import warnings
from typing import Any

import pytest
import torch
from nnsight import TransformersModel
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, Gemma2Config, Gemma3TextConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gemma2 import modeling_gemma2

from nnsight_nla import NLA, CheckpointError, NLAWarning, Sampling
from nnsight_nla.models.attention import with_cap
from nnsight_nla.training.run import _load
from nnsight_nla.training.settings import Settings
from tests.helpers import plain, random_models

PROMPT = "People in Paris speak"
SAMPLING = Sampling(max_new_tokens=12)
LEFT_OUT = (
    r"runs with attn_implementation='sdpa', which leaves out the soft cap .*_softcapping=1\.0"
)


@pytest.fixture(autouse=True)
def before_5_21(monkeypatch):
    """Let ``sdpa`` run a Gemma 2 without its cap, as transformers does before 5.21."""
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(modeling_gemma2.Gemma2PreTrainedModel, "_supports_sdpa", True)
    monkeypatch.setitem(
        ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *given, softcap=None, **more: sdpa(*given, **more)
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return random_models.save(
        tmp_path_factory.mktemp("gemma2"), "gemma2", head_dim=32, query_pre_attn_scalar=32,
        attn_logit_softcapping=1.0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(4, 128, generator=torch.Generator(device="cpu").manual_seed(0))


def live(folder, attention: str | None):
    options = {} if attention is None else {"attn_implementation": attention}
    return TransformersModel(str(folder), task="text-generation", dtype="float32", **options)


def told(folder, vectors, attention: str) -> list[str]:
    """The texts of a plain hook on the plain model."""
    found = plain.verbalize(folder, vectors, SAMPLING.max_new_tokens, attention=attention)
    decode = plain.load(folder)[1].decode
    return [decode(each.tokens, skip_special_tokens=True) for each in found]


def read(model, nla) -> torch.Tensor:
    with model.trace(PROMPT):
        found = nla.layer(model).output[0].detach().save()
    return found


def test_a_verbalizer_from_a_folder_has_its_cap(folder, vectors):
    capped, uncapped = (told(folder, vectors, each) for each in ("eager", "sdpa"))
    assert all(one != other for one, other in zip(capped, uncapped, strict=True))
    nla = NLA(folder, dtype="float32", sampling=SAMPLING)
    assert nla.explain(vectors).raw == capped
    with pytest.warns(NLAWarning, match=LEFT_OUT):
        chosen = NLA(folder, dtype="float32", sampling=SAMPLING, attn_implementation="sdpa")
    assert chosen.explain(vectors).raw == uncapped


def test_a_live_verbalizer_without_its_cap_warns_once(folder, vectors):
    model = live(folder, None)
    with pytest.warns(NLAWarning, match=LEFT_OUT) as caught:
        nla = NLA(model, checkpoint=folder, sampling=SAMPLING)
    assert caught[0].filename == __file__
    assert nla.explain(vectors).raw == told(folder, vectors, "sdpa")
    NLA(model, checkpoint=folder)
    capped = NLA(live(folder, "eager"), checkpoint=folder, sampling=SAMPLING)
    assert capped.explain(vectors).raw == told(folder, vectors, "eager")


def test_a_target_without_its_cap_warns_once(folder):
    nla, model = NLA(folder, dtype="float32"), live(folder, None)
    with pytest.warns(NLAWarning, match="its residuals and texts are not those of the model with"):
        read(model, nla)
    found = read(model, nla)
    capped = read(live(folder, "eager"), nla)
    layer = nla.checkpoint.layer
    for got, attention in ((found, "sdpa"), (capped, "eager")):
        expected = plain.residual(folder, PROMPT, layer, attention)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-3)
    assert (found - capped).norm() > 0.1 * capped.norm()


def test_an_adapter_and_its_target_have_one_warning(folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    model = live(folder, None)
    with pytest.warns(NLAWarning, match=LEFT_OUT):
        vector = read(model, NLA(folder, dtype="float32"))[-1]
    nla = NLA.on(model, av=tmp_path, checkpoint=folder, sampling=SAMPLING)
    nla.explain(vector).text  # noqa: B018


@pytest.mark.parametrize(("attention", "found"), [(None, "eager"), ("eager", "eager")])
def test_a_model_to_train_has_its_cap(folder, attention, found):
    model, _ = _load(folder, None, attention, Settings())
    assert model.config._attn_implementation == found


def test_a_model_to_train_with_another_attention_warns(folder):
    with pytest.warns(NLAWarning, match=LEFT_OUT):
        _load(folder, None, "sdpa", Settings())


def test_options_are_those_of_the_caller_or_of_a_model_without_a_cap():
    given = {"dtype": "float32"}
    assert with_cap(Gemma2Config(), given) == {**given, "attn_implementation": "eager"}
    assert given == {"dtype": "float32"}
    flex: dict[str, Any] = {"attn_implementation": "flex_attention"}
    for config, options in (
        (Gemma2Config(), flex),
        (Gemma2Config(**flex), given),
        (Gemma2Config(attn_logit_softcapping=None), given),
        (Gemma3TextConfig(), given),
    ):
        assert with_cap(config, options) is options


def test_no_warning_without_a_cap(tmp_path, vectors):
    folder = random_models.save(tmp_path, "gemma3_text", head_dim=32, query_pre_attn_scalar=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nla = NLA(folder, dtype="float32", sampling=SAMPLING)
        found = nla.explain(vectors[:1]).raw
    assert nla.av.attn_implementation == "sdpa"
    assert found == told(folder, vectors[:1], "sdpa")


@pytest.mark.parametrize("attention", ["flash_attention_2", "none"])
def test_an_attention_that_there_is_not(folder, attention):
    with pytest.raises(CheckpointError) as caught:
        NLA(folder, attn_implementation=attention)
    assert str(caught.value).startswith(
        f"attn_implementation='{attention}' does not work for '{folder}': "
    )
    assert str(caught.value).endswith(
        "Choose another, such as attn_implementation='eager', or leave it out."
    )
