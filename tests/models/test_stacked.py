"""Adapters trained one on top of the other, compared with a merge by PEFT."""

import json
import pickle

import pytest
import torch
import yaml
from nnsight import TransformersModel
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, CheckpointError, Sampling, tiny
from nnsight_nla.models.stacked import combined, one_adapter

PATHS = tiny.paths()
SHORT = Sampling(max_new_tokens=8)
SIDECAR = PATHS["av"] / "nla_meta.yaml"


def base():
    return AutoModelForCausalLM.from_pretrained(PATHS["target"], dtype=torch.float32)


def adapter(folder, seed, base_name=None, **options):
    """A LoRA adapter with random matrices, as PEFT stores it."""
    torch.manual_seed(seed)
    model = get_peft_model(base(), LoraConfig(init_lora_weights=False, **options))
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.2)
    model.save_pretrained(folder)
    if base_name is not None:
        file = folder / "adapter_config.json"
        config = {**json.loads(file.read_text()), "base_model_name_or_path": base_name}
        file.write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Two adapters of other ranks, scales and modules; the second was trained on a merged model."""
    folder = tmp_path_factory.mktemp("parts")
    sft = adapter(folder / "sft", 1, r=4, lora_alpha=16, target_modules=["q_proj", "up_proj"])
    (sft / "nla_meta.yaml").write_text(SIDECAR.read_text("utf-8"), "utf-8")
    rl = adapter(
        folder / "rl", 2, "/gone/merged-sft", r=6, lora_alpha=3, use_rslora=True,
        target_modules=["q_proj", "v_proj"],
    )  # fmt: skip
    return sft, rl


@pytest.fixture(scope="module")
def merged(parts, tmp_path_factory):
    """Both adapters merged into the base by PEFT, one after the other."""
    model = base()
    for part in parts:
        model = PeftModel.from_pretrained(model, part).merge_and_unload()
    folder = tmp_path_factory.mktemp("merged")
    model.save_pretrained(folder)
    return folder


def test_two_adapters_are_their_merge(parts, merged, residuals, monkeypatch, tmp_path):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    by_hand = NLA(merged, checkpoint=SIDECAR, dtype=torch.float32)
    expected = by_hand.explain(residuals, sampling=SHORT).raw
    nla = NLA(list(parts), dtype=torch.float32)
    assert nla.explain(residuals, sampling=SHORT).raw == expected
    only = NLA(parts[0], dtype=torch.float32).explain(residuals, sampling=SHORT).raw
    assert only != expected
    target = TransformersModel(str(PATHS["target"]), task="text-generation", dtype=torch.float32)
    before = target._module.state_dict()["lm_head.weight"].clone() if target.dispatched else None
    shared = NLA.on(target, av=list(parts))
    assert shared.explain(residuals, sampling=SHORT).raw == expected
    assert before is None or torch.equal(before, target._module.state_dict()["lm_head.weight"])
    ids = torch.arange(3, 23)[None]
    reference = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    with torch.no_grad(), nla.av.trace(ids):
        logits = nla.av.output.logits.save()
    torch.testing.assert_close(logits, reference(ids).logits, rtol=1e-4, atol=1e-4)


def test_the_sidecar_of_the_last_names_those_below(parts, monkeypatch, tmp_path):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    sft, rl = parts
    tree = yaml.safe_load(SIDECAR.read_text("utf-8"))
    tree["training"]["base_adapters"] = ["../sft"]
    file = rl / "nla_meta.yaml"
    file.write_text(yaml.safe_dump(tree), "utf-8")
    try:
        one = NLA(rl)
        assert one.av.peft == one_adapter([sft, rl]) == one_adapter(rl)
        assert one.av.peft.endswith("/sft+rl")
        # What was combined is not combined again: another process opens the same folder.
        assert one_adapter(one.av.peft) == one.av.peft
        assert NLA(**(one.spec or {})).av.peft == one.av.peft
        assert pickle.loads(pickle.dumps(one)) is one
        tree["training"]["base_adapters"] = "../sft"
        file.write_text(yaml.safe_dump(tree), "utf-8")
        with pytest.raises(CheckpointError, match=r"training\.base_adapters is '\.\./sft', expec"):
            NLA(rl)
    finally:
        file.unlink()


def test_a_combination_is_made_once_and_follows_its_parts(parts, monkeypatch, tmp_path):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    sft, rl = parts
    first = combined([sft, rl])
    made = (first / "adapter_model.safetensors").stat().st_mtime_ns
    assert combined([sft, rl]) == first
    assert (first / "adapter_model.safetensors").stat().st_mtime_ns == made
    assert combined([sft, sft]) != first
    assert one_adapter([sft]) == sft
    assert one_adapter("you/av") == "you/av"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True: only plain LoRA"),
        ({"bias": "all"}, "bias='all': only plain LoRA"),
        ({"lora_alpha": None}, "lora_alpha=None: only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\]: only plain LoRA"),
    ],
)
def test_what_cannot_be_added_up_is_refused(parts, settings, message, monkeypatch, tmp_path):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path / "cache"))
    odd = adapter(tmp_path / "odd", 3, r=2, target_modules=["q_proj"])
    file = odd / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))
    with pytest.raises(CheckpointError, match=message):
        NLA([parts[0], odd])


def test_a_list_of_something_else_is_refused(parts):
    with pytest.raises(CheckpointError, match=r"The list of adapters is empty\. Pass them"):
        NLA([])
    with pytest.raises(CheckpointError, match="The list of adapters has 3: expected folders"):
        one_adapter([parts[0], 3])
    with pytest.raises(CheckpointError, match=r"has no adapter_config\.json, so it cannot be com"):
        NLA([parts[0], PATHS["av"]])
