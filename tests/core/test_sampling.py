"""A draw depends on (seed, vector, sample) and on nothing else, and follows the softmax."""

import math
import re

import pytest
import torch
from transformers import LogitsProcessorList

from nnsight_nla.core.sampling import GumbelNoise, Sampling, draw_seed
from nnsight_nla.errors import VerbalizationError

HOT = Sampling(temperature=1.0)

BAD = [
    *(
        ("temperature", bad, "0 (greedy) or more")
        for bad in (-0.1, math.nan, math.inf, "1", None, True)
    ),
    *(("top_p", bad, "above 0 and at most 1") for bad in (0, -0.5, 1.01, math.nan, "1", True)),
    *(("top_k", bad, "a whole number, 0 for no limit") for bad in (-1, 2.0, "5", None, True)),
    *(("max_new_tokens", bad, "1 or more") for bad in (0, -1, 1.5, None, True)),
    *(("seed", bad, "a whole number") for bad in (1.0, "0", None, True)),
]


@pytest.mark.parametrize(("name", "bad", "expected"), BAD)
def test_what_sampling_refuses(name, bad, expected):
    message = f"Sampling({name}={bad!r}): expected {expected}."
    with pytest.raises(VerbalizationError, match=f"^{re.escape(message)}$"):
        Sampling(**{name: bad})


def test_the_default_is_greedy_and_touches_no_logits():
    assert Sampling() == Sampling(0.0, 1.0, 0, 200, 0)
    assert Sampling().greedy
    assert not HOT.greedy
    assert len(Sampling(top_k=3, top_p=0.5).processors([])) == 0


def test_a_whole_numbered_temperature_is_one_too():
    scores = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    whole, real = Sampling(temperature=2), Sampling(temperature=2.0)
    assert torch.equal(draw(whole, [1], scores), draw(real, [1], scores))
    assert Sampling(temperature=10**400, seed=-(10**30)).temperature == 10**400


def draw(sampling: Sampling, seeds: list[int], scores: torch.Tensor) -> torch.Tensor:
    return sampling.processors(seeds)(torch.zeros(len(scores), 1, dtype=torch.long), scores)


def test_a_draw_does_not_depend_on_the_batch():
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, 16, generator=generator)
    logits = torch.randn(5, 12, 30, generator=generator)  # Five steps of twelve rows.
    seeds = [draw_seed(7, vector, 0) for vector in vectors]

    def tokens(rows: list[int]) -> dict[int, list[int]]:
        chain = HOT.processors([seeds[row] for row in rows])
        steps = [chain(torch.zeros(len(rows), 1, dtype=torch.long), step[rows]) for step in logits]
        picked = torch.stack(steps).argmax(dim=-1).T.tolist()
        return dict(zip(rows, picked, strict=True))

    together = tokens(list(range(12)))
    order = torch.randperm(12, generator=generator).tolist()
    assert tokens(order) == together
    assert tokens(order[:5]) | tokens(order[5:]) == together
    assert {row: tokens([row])[row] for row in range(12)} == together


def test_a_seed_is_that_of_the_vectors_values_the_sample_and_the_callers_seed():
    vector = torch.randn(16, generator=torch.Generator().manual_seed(0)).bfloat16()
    first = draw_seed(0, vector, 0)
    assert first == draw_seed(0, vector.float(), 0)
    assert first == draw_seed(0, vector.double().requires_grad_(), 0)
    assert first == draw_seed(0, torch.stack([vector, vector], dim=-1)[:, 1], 0)  # Strided.
    nudged = vector.float()
    nudged[3] = torch.nextafter(nudged[3], torch.tensor(math.inf))
    others = [draw_seed(1, vector, 0), draw_seed(0, vector, 1), draw_seed(0, nudged, 0)]
    # The seed and the sample do not run into each other: (1, 11) is not (11, 1).
    others += [draw_seed(1, vector, 11), draw_seed(11, vector, 1)]
    assert len({first, *others}) == 6
    assert all(0 <= seed < 2**63 for seed in [first, *others])


def test_draws_follow_the_softmax():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])
    count = 20_000
    noisy = draw(HOT, list(range(count)), logits.expand(count, -1))
    seen = torch.bincount(noisy.argmax(dim=-1), minlength=5).double()
    expected = count * logits.double().softmax(dim=-1)
    # Chi-square with 4 degrees of freedom: 23.5 is its 0.9999 quantile.
    assert ((seen - expected) ** 2 / expected).sum().item() < 23.5


def test_a_temperature_changes_the_distribution_as_it_should():
    logits = torch.tensor([2.0, 1.0, 0.0])
    count = 20_000
    noisy = draw(Sampling(temperature=2.0), list(range(count)), logits.expand(count, -1))
    seen = torch.bincount(noisy.argmax(dim=-1), minlength=3).double()
    expected = count * (logits.double() / 2).softmax(dim=-1)
    assert ((seen - expected) ** 2 / expected).sum().item() < 18.4  # 2 degrees, 0.9999.


def test_the_steps_of_one_row_are_independent_draws():
    chain = HOT.processors([3])
    steps = [chain(torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 50)) for _ in range(40)]
    assert len({int(step.argmax()) for step in steps}) > 15


def test_top_k_and_top_p_leave_tokens_out_before_the_draw():
    logits = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0]).expand(3000, -1)
    seeds = list(range(3000))

    def seen(**limits) -> set[int]:
        return set(draw(Sampling(temperature=1.0, **limits), seeds, logits).argmax(-1).tolist())

    assert seen() == {0, 1, 2, 3, 4}
    assert seen(top_k=2) == {0, 1}
    # softmax: 0.636, 0.234, 0.086, ...
    assert seen(top_p=0.6) == {0}
    assert seen(top_p=0.8) == {0, 1}
    assert seen(top_k=3, top_p=0.99) == {0, 1, 2}
    # A high temperature flattens first: top_p=0.6 then needs three tokens.
    flat = draw(Sampling(temperature=100.0, top_p=0.59), seeds, logits).argmax(-1)
    assert set(flat.tolist()) == {0, 1, 2}


def test_the_chain_is_in_order_and_the_scores_are_not_edited():
    chain = Sampling(temperature=0.5, top_k=2, top_p=0.9).processors([1])
    assert isinstance(chain, LogitsProcessorList)
    assert [type(each).__name__ for each in chain] == [
        "TemperatureLogitsWarper",
        "TopKLogitsWarper",
        "TopPLogitsWarper",
        "GumbelNoise",
    ]
    scores = torch.randn(1, 9)
    before = scores.clone()
    chain(torch.zeros(1, 1, dtype=torch.long), scores)
    assert torch.equal(scores, before)


def test_left_out_tokens_stay_out_and_no_nan_comes_in():
    scores = torch.full((1, 1000), -math.inf)
    scores[0, 5] = 0
    for seed in range(20):
        noisy = GumbelNoise([seed])(torch.zeros(1, 1, dtype=torch.long), scores)
        assert noisy.argmax().item() == 5
        assert not noisy.isnan().any()


def test_a_row_without_a_seed_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        draw(HOT, [1, 2], torch.zeros(3, 5))
