"""The texts of compiled steps of constant shapes are those of the engine."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, Sampling, tiny
from tests.bench.compiled import CompiledSteps


@pytest.fixture(scope="module")
def av():
    return tiny.paths()["av"]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_texts_are_those_of_the_engine(av, temperature, monkeypatch):
    """Five rows: 8 places, then 4, then 2. ``backend="eager"``: captured, and run as it is."""
    torch._dynamo.reset()
    sampling = Sampling(temperature=temperature, seed=3, max_new_tokens=60)
    nla = NLA(av, dtype=torch.float32, sampling=sampling)
    module = AutoModelForCausalLM.from_pretrained(av, dtype=torch.float32).eval()
    steps = CompiledSteps(module, smallest=2, backend="eager")
    assert steps.module.lm_head.weight is module.lm_head.weight
    vectors = torch.randn(5, 128, generator=torch.Generator().manual_seed(1))
    expected = nla.explain(vectors)
    texts = expected.raw
    lengths = [reply.new_tokens for reply in expected._capture.replies.values()]
    assert len(set(texts)) == 5
    assert len(set(lengths)) > 2
    with steps.decoding(monkeypatch):
        assert nla.explain(vectors).raw == texts
        assert [size for size, _ in steps.caches] == [8, 4, 2]
        # The caches are used again, with what the batch before left in them.
        assert nla.explain(vectors.flip(0)).raw == texts[::-1]
    assert len(steps.caches) == 3
