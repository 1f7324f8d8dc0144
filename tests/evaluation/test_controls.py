"""The controls: a cycle without fixed points, directions of given norms, and what is refused."""

import re

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from nnsight_nla import Explanation, InjectionError, Sampling, VerbalizationError
from nnsight_nla.evaluation.controls import Controls, controls, random_vectors
from nnsight_nla.explanation.records import Capture


class Explains:
    """Explains nothing: its "explanations" are the vectors themselves."""

    def explain(self, vectors):
        return vectors

    def explain_nothing(self):
        return "nothing"


class Queue:
    def add(self, handle):
        pass


def make(n, like=None, seed=0, d_model=4) -> Controls:
    return controls(Explains(), n, d_model, like, seed)


def rows(count: int, d_model: int = 4) -> torch.Tensor:
    """Vectors of the norms 1, 2, 3, ..."""
    generator = torch.Generator().manual_seed(9)
    unit = torch.nn.functional.normalize(torch.randn(count, d_model, generator=generator), dim=-1)
    return unit * torch.arange(1.0, count + 1)[:, None]


@given(st.integers(2, 40), st.integers(0, 10_000))
def test_the_order_is_one_cycle_through_all_rows(count, seed):
    order = make(count, rows(count), seed).order
    row, visited = 0, []
    for _ in range(count):
        visited.append(row)
        row = order[row]
    assert row == 0
    assert sorted(visited) == list(range(count))


@given(st.integers(2, 12), st.data())
def test_fewer_rows_get_different_rows_never_their_own(count, data):
    n = data.draw(st.integers(1, count))
    order = make(n, rows(count), data.draw(st.integers(0, 99))).order
    assert len(set(order)) == n
    assert set(order) <= set(range(count))
    assert all(own != other for own, other in enumerate(order))


def test_shuffled_rows_are_other_rows_unchanged():
    like = rows(5)
    found = make(5, like)
    assert torch.equal(found.shuffled, like[list(found.order)])
    assert found.null == "nothing"
    assert torch.equal(like, rows(5))


def test_random_directions_have_the_norms_of_the_vectors_in_their_order():
    found = make(3, rows(5))
    torch.testing.assert_close(found.random.norm(dim=-1), torch.tensor([1.0, 2.0, 3.0]))
    coarse = make(3, rows(5).to(torch.bfloat16)).random
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(
        coarse.norm(dim=-1), torch.tensor([1.0, 2.0, 3.0]), rtol=0.01, atol=0
    )


def test_without_vectors_there_are_no_shuffled_ones():
    found = make(7)
    assert (found.shuffled, found.order) == (None, None)
    torch.testing.assert_close(found.random.norm(dim=-1), torch.full((7,), 2.0))


def test_a_handle_stands_for_its_vectors_and_a_batch_is_flattened():
    like = rows(6)
    handle = Explanation.of(Capture(Queue(), like, 6, 1, Sampling()), (2, 3))
    for given_as in (handle, like.reshape(2, 3, 4), like.clone().requires_grad_()):
        found = make(6, given_as)
        assert torch.equal(found.shuffled, make(6, like).shuffled)
        assert torch.equal(found.random, make(6, like).random)
        assert not found.shuffled.requires_grad


def test_the_seed_decides_directions_and_order():
    one, same, other = make(20, rows(20), 1), make(20, rows(20), 1), make(20, rows(20), 2)
    assert torch.equal(one.random, same.random)
    assert one.order == same.order
    assert not torch.allclose(one.random, other.random)
    assert one.order != other.order
    before = torch.random.get_rng_state()
    make(3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_directions_are_uniform_on_the_sphere():
    drawn = random_vectors(20_000, 3, torch.Generator().manual_seed(0))
    unit = drawn / 3**0.5
    torch.testing.assert_close(unit.norm(dim=-1), torch.ones(20_000))
    # Uniform on the sphere: mean 0, covariance 1/3, and each coordinate uniform on [-1, 1].
    assert unit.mean(dim=0).abs().max() < 0.02
    torch.testing.assert_close(unit.T @ unit / 20_000, torch.eye(3) / 3, atol=0.01, rtol=0)
    quartiles = torch.quantile(unit[:, 0], torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quartiles, torch.tensor([-0.5, 0.0, 0.5]), atol=0.02, rtol=0)


@pytest.mark.parametrize("n", [0, -1, True, 2.0, "3", None])
def test_a_number_of_rows_that_is_not_one(n):
    message = f"controls({n!r}): expected a whole number from 1."
    with pytest.raises(VerbalizationError, match=f"^{re.escape(message)}$"):
        make(n, rows(3))


@pytest.mark.parametrize(("count", "n", "needed"), [(1, 1, 2), (0, 1, 2), (2, 3, 3)])
def test_too_few_vectors_to_shuffle(count, n, needed):
    message = (
        f"controls({n}, like=...): {count} rows cannot give {n} shuffled ones. Pass at least "
        f"{needed} vectors, or leave out like= for null and random controls only."
    )
    with pytest.raises(VerbalizationError, match=f"^{re.escape(message)}$"):
        make(n, rows(count) if count else torch.empty(0, 4))


@pytest.mark.parametrize("like", [torch.ones(3, 5), torch.ones(3, 4, dtype=torch.long), "text"])
def test_vectors_of_another_kind(like):
    with pytest.raises(
        InjectionError, match=r"Expected a floating-point tensor of shape \[..., 4\]"
    ):
        make(2, like)
