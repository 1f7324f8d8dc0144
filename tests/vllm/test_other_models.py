"""Adapters, tensor parallelism, the embedding as the site, several slots, blocks of other kinds."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from tests.helpers import families

AV = tiny.paths()["av"]
SHORT = Sampling(max_new_tokens=24)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter on the tiny verbalizer, with random matrices that change every text."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(AV, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("av")
    model.save_pretrained(folder)
    (folder / "nla_meta.yaml").write_text((AV / "nla_meta.yaml").read_text("utf-8"), "utf-8")
    return folder


def test_an_adapter_with_two_slots_at_the_embedding_on_two_ranks(on_vllm, adapter, vectors):
    described = Checkpoint.load(adapter)
    slot = "<concept>{injection_char}</concept>"
    described = replace(
        described,
        template=described.template.replace(slot, f"{slot} and {slot}"),
        injection=Injection("replace", "embedding", None, 40.0),
    )
    options = {"checkpoint": described, "sampling": SHORT}
    ours = on_vllm(peft=str(adapter), vllm={"tensor_parallel_size": 2}, **options)
    theirs = NLA(AV, peft=str(adapter), dtype="float32", **options)
    assert len(theirs.prompt.sites) == 2
    found, expected = ours.explain(vectors[:64]), theirs.explain(vectors[:64])
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 5
    assert found.receipt.norm_after == pytest.approx([40.0] * 64, rel=1e-4)
    assert ours.explain_nothing().raw == theirs.explain_nothing().raw
    # The adapter acts: without it, other texts.
    assert NLA(AV, dtype="float32", **options).explain(vectors[:64]).raw != expected.raw


def test_a_block_that_returns_the_residual_itself(on_vllm, vectors, tmp_path):
    folder = families.save(tmp_path / "gpt2", "gpt2", pad_is_eos=False)
    (marker,) = AutoTokenizer.from_pretrained(folder).encode("!", add_special_tokens=False)
    checkpoint = Checkpoint(
        layer=2, d_model=128, template="Say{injection_char} it.", marker="!",
        marker_id=marker, injection=Injection("add", "block", 1, 3.0),
    )  # fmt: skip
    options = {"checkpoint": checkpoint, "sampling": Sampling(max_new_tokens=12)}
    ours = on_vllm(folder, vllm={"max_model_len": families.CONTEXT}, **options)
    theirs = NLA(folder, dtype="float32", **options)
    found, expected = ours.explain(vectors[:48]), theirs.explain(vectors[:48])
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 5
    assert found.receipt.norm_after == pytest.approx(expected.receipt.norm_after, rel=1e-4)
