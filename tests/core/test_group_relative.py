"""Advantages, the KL estimate and the loss: by hand, and against independent formulas."""

import math

import pytest
import torch

from nnsight_nla.core.group_relative import advantages, distinct, k3, policy_loss


def test_advantages_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 2.0], [7.0, 7.0, 7.0]])
    found = advantages(rewards)
    assert found[0].tolist() == pytest.approx([-1.0, 0.0, 1.0], abs=1e-3)
    assert found[1].tolist() == [0.0, 0.0, 0.0]
    # Only differences within a group count.
    torch.testing.assert_close(advantages(rewards + torch.tensor([[5.0], [-9.0]])), found)


def test_k3_estimates_the_divergence():
    """Its mean over draws of the policy is the sum of p log(p / q)."""
    p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.4, 0.4, 0.2])
    exact = (p * (p / q).log()).sum()
    each = k3(p.log(), q.log())
    assert (each >= 0).all()
    assert (p * each).sum().item() == pytest.approx(exact.item(), rel=1e-5)
    assert k3(p.log(), p.log()).tolist() == [0.0, 0.0, 0.0]


def test_the_gradient_is_the_advantage_and_the_pull_to_the_reference():
    policy = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]], requires_grad=True)
    reference = torch.tensor([[-1.5, -1.0], [-0.5, -9.0]])
    drawn = torch.tensor([[True, True], [True, False]])
    advantage = torch.tensor([2.0, -1.0])
    policy_loss(policy, reference, advantage, drawn, kl=0.1).backward()
    expected = [
        [-2.0 + 0.1 * (1 - math.exp(-0.5)), -2.0 + 0.1 * (1 - math.exp(1.0))],
        [1.0, 0.0],
    ]
    assert policy.grad is not None
    for row, wanted in zip(policy.grad.tolist(), expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-6)


def test_the_share_of_distinct_texts_is_of_each_group():
    assert distinct(["a", "a", "a", "b"], draws=4) == 0.5
    assert distinct(["a", "b", "a", "b"], draws=2) == 1.0
    assert distinct(["a", "a", "b", "b"], draws=2) == 0.5
