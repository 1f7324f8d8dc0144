"""An adapter, tensor parallelism, the embedding as the site, and several slots, all at once."""

from dataclasses import replace

import pytest

from nnsight_nla import NLA, Checkpoint, Injection, Sampling

from .conftest import AV, random_adapter

SHORT = Sampling(max_new_tokens=24)


def test_an_adapter_with_two_slots_at_the_embedding_on_two_ranks(on_vllm, vectors, tmp_path):
    adapter = random_adapter(tmp_path / "av")
    described = Checkpoint.load(adapter)
    slot = "<concept>{injection_char}</concept>"
    described = replace(
        described,
        template=described.template.replace(slot, f"{slot} and {slot}"),
        injection=Injection("replace", "embedding", None, 40.0),
    )
    options = {"checkpoint": described, "sampling": SHORT}
    two = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    ours = on_vllm(peft=str(adapter), vllm=two, **options)
    theirs = NLA(AV, peft=str(adapter), dtype="float32", **options)
    assert len(theirs.prompt.sites) == 2
    found, expected = ours.explain(vectors[:64]), theirs.explain(vectors[:64])
    assert found.raw == expected.raw
    assert len(set(expected.raw)) > 5
    assert found.receipt.norm_after == pytest.approx([40.0] * 64, rel=1e-4)
    assert ours.explain_nothing().raw == theirs.explain_nothing().raw
    # The adapter acts: without it, other texts.
    assert NLA(AV, dtype="float32", **options).explain(vectors[:64]).raw != expected.raw
