"""Likelihoods of replies: against plain transformers with a plain PyTorch hook."""

import pytest
import torch

from nnsight_nla import VerbalizationError, tiny
from nnsight_nla.verbalize.likelihood import likelihoods
from tests.helpers.plain import load

AV = tiny.paths()["av"]
REPLIES = ["About Paris, the capital of France.", "A wolf.", "Speaks of a sad cat in the garden. "]


@pytest.fixture(scope="module")
def ids():
    tokenizer = load(AV)[1]
    return [tokenizer.encode(text, add_special_tokens=False) for text in REPLIES]


@pytest.fixture(scope="module")
def vectors():
    return torch.randn(3, 128, generator=torch.Generator().manual_seed(4)) * 3


def plain(vectors, given, replies, layer=1) -> torch.Tensor:
    """Each row alone, without padding: norm-matched addition at the marker, then log-softmax."""
    model, tokenizer, prompt = load(AV)
    position = prompt.index(tokenizer.convert_tokens_to_ids("㈎"))
    found = []
    for vector, has, reply in zip(vectors, given.tolist(), replies, strict=True):

        def write(module, args, output, vector=vector):
            here = output[:, position]
            output = output.clone()
            output[:, position] = here + here.norm() * vector / vector.norm()
            return output

        hook = model.model.layers[layer].register_forward_hook(write) if has else None
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + reply])).logits[0]
        if hook is not None:
            hook.remove()
        scores = logits[len(prompt) - 1 : -1].log_softmax(-1)
        found.append(torch.stack([row[token] for row, token in zip(scores, reply, strict=True)]))
    return torch.stack([each.mean() for each in found])


@pytest.mark.parametrize("given", [[True] * 3, [False] * 3, [True, False, True]])
def test_equals_a_plain_forward_pass(nla, vectors, ids, given):
    given = torch.tensor(given)
    found = likelihoods(nla._verbalizer, vectors, given, ids)
    torch.testing.assert_close(found, plain(vectors, given, ids), atol=1e-4, rtol=1e-4)


def test_right_padding_changes_nothing(nla, vectors, ids):
    everyone = torch.ones(3, dtype=torch.bool)
    assert len({len(each) for each in ids}) == 3
    batch = likelihoods(nla._verbalizer, vectors, everyone, ids)
    for row in range(3):
        alone = likelihoods(nla._verbalizer, vectors[[row]], everyone[:1], [ids[row]])
        torch.testing.assert_close(batch[[row]], alone, atol=1e-5, rtol=1e-5)


def test_a_null_row_ignores_its_vector(nla, vectors, ids):
    nobody = torch.zeros(3, dtype=torch.bool)
    broken = torch.full_like(vectors, torch.nan)
    null = likelihoods(nla._verbalizer, vectors, nobody, ids)
    assert torch.equal(likelihoods(nla._verbalizer, broken, nobody, ids), null)
    assert not torch.allclose(likelihoods(nla._verbalizer, vectors, ~nobody, ids), null, atol=0.1)


def test_its_own_reply_is_likelier_with_its_vector(nla, residuals):
    vectors = residuals[-2:]
    encode, said = nla._verbalizer.tokenizer.encode, nla.explain(vectors).raw
    replies = [encode(raw, add_special_tokens=False) for raw in said]
    everyone = torch.ones(2, dtype=torch.bool)
    given = likelihoods(nla._verbalizer, vectors, everyone, replies)
    assert (given > likelihoods(nla._verbalizer, vectors, ~everyone, replies) + 0.1).all()


def test_refused_inside_a_trace_of_the_verbalizer(nla, vectors, ids):
    with pytest.raises(VerbalizationError, match="A trace is running on the verbalizer itself"):
        with nla.av.trace("x"):
            likelihoods(nla._verbalizer, vectors, torch.ones(3, dtype=torch.bool), ids)
    assert not nla.av.interleaver.interleaving
