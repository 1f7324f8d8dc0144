"""Adapters, tensor parallelism, the embedding as the site, several slots, blocks of other kinds."""

from dataclasses import replace

import pytest
from transformers import AutoTokenizer

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from tests.helpers import families
from tests.models.test_adapter import lora

SHORT = Sampling(max_new_tokens=24)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A verbalizer that is a LoRA adapter on the tiny target, with two slots at the embedding."""
    folder = lora(tmp_path_factory.mktemp("av"))
    sidecar = (tiny.paths()["av"] / "nla_meta.yaml").read_text("utf-8")
    (folder / "nla_meta.yaml").write_text(sidecar, "utf-8")
    return folder


def test_an_adapter_with_two_slots_at_the_embedding_on_two_ranks(on_vllm, adapter, vectors):
    described = Checkpoint.load(adapter)
    slot = "<concept>{injection_char}</concept>"
    described = replace(
        described,
        template=f"Here: {slot} and again: {slot}",
        injection=Injection("replace", "embedding", None, 12.0),
    )
    options = {"checkpoint": described, "sampling": SHORT}
    target = tiny.paths()["target"]
    ours = on_vllm(target, peft=str(adapter), vllm={"tensor_parallel_size": 2}, **options)
    theirs = NLA(target, peft=str(adapter), dtype="float32", **options)
    assert len(theirs.prompt.sites) == 2
    found, expected = ours.explain(vectors[:64]), theirs.explain(vectors[:64])
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 5
    assert found.receipt.norm_after == pytest.approx([12.0] * 64, rel=1e-4)
    assert ours.explain_nothing().raw == theirs.explain_nothing().raw
    # The adapter acts: without it, other texts.
    alone = NLA(target, dtype="float32", **options)
    assert alone.explain(vectors[:64]).raw != expected.raw


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
