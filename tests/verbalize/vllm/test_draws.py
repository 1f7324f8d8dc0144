"""vLLM's draws are ours, also after a preemption."""

import torch

from nnsight_nla import Sampling
from nnsight_nla.verbalize.vllm.draws import Draw, arguments

WARM = Sampling(temperature=0.7, top_p=0.9, top_k=50, seed=3)


def logits(steps=6, vocabulary=200):
    return torch.randn(steps, vocabulary, generator=torch.Generator().manual_seed(1)) * 3


def expected(seed=11):
    chain = WARM.processors([seed])
    return [chain(None, row[None]).argmax().item() for row in logits()]


def test_a_request_draws_as_its_row_does():
    draw, said = Draw(arguments(WARM, 11)), []
    for row in logits():
        said.append(draw(said, row).argmax().item())
    assert said == expected()
    assert said != expected(12)


def test_a_preempted_request_goes_on_where_it_was():
    said = expected()
    for done in range(len(said)):
        draw = Draw(arguments(WARM, 11))
        assert draw(said[:done], logits()[done]).argmax().item() == said[done]


def test_a_greedy_request_has_no_arguments():
    assert arguments(Sampling(), None) == {}
