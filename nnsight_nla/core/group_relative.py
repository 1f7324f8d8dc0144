"""Turn the rewards of several texts about one vector into a policy's loss.

The texts of one vector are a *group*. A text's advantage is how much better than its group it is
(group-relative policy optimisation), so no value model is needed. The policy is kept near a
reference by an estimate of the KL divergence from it.

>>> import torch
>>> rewards = torch.tensor([[0.0, 1.0], [5.0, 5.0]])
>>> [[round(each, 3) for each in group] for group in advantages(rewards).tolist()]
[[-0.707, 0.707], [0.0, 0.0]]
>>> estimates = k3(torch.tensor([0.0, -1.0]), torch.tensor([0.0, -2.0])).tolist()
>>> [round(each, 4) for each in estimates]
[0.0, 0.3679]
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

_LEAST = 1e-4
"""Added to a group's standard deviation: a group whose rewards are almost equal teaches nothing."""


def advantages(rewards: Float[Tensor, "groups draws"]) -> Float[Tensor, "groups draws"]:
    """Return each reward minus its group's mean, over its group's standard deviation.

    Source: Shao et al. 2024, *DeepSeekMath*, section 4.1.2 (outcome supervision).
    """
    spread = rewards.std(dim=-1, keepdim=True)
    return (rewards - rewards.mean(dim=-1, keepdim=True)) / (spread + _LEAST)


def k3(
    policy: Float[Tensor, "*tokens"], reference: Float[Tensor, "*tokens"]
) -> Float[Tensor, "*tokens"]:
    """Estimate the KL divergence of the policy from the reference at each drawn token, in nats.

    It is never negative, and has the right mean over tokens that the policy drew.

    Args:
        policy: The policy's log-probability of each token.
        reference: The reference's.

    Source: Schulman 2020, *Approximating KL divergence*, the estimator k3.
    """
    difference = reference - policy
    return difference.exp() - difference - 1


def policy_loss(
    policy: Float[Tensor, "texts tokens"],
    reference: Float[Tensor, "texts tokens"],
    advantage: Float[Tensor, " texts"],
    drawn: Bool[Tensor, "texts tokens"],
    *,
    kl: float,
) -> Float[Tensor, ""]:
    """Return the sum of the loss over the drawn tokens; divide it by their number.

    There is one update for each set of draws, so the importance ratio is 1 and its gradient is that
    of the log-probability.

    Args:
        policy: Log-probabilities under the policy, with gradients.
        reference: Log-probabilities under the reference.
        advantage: The advantage of each text, shared by its tokens.
        drawn: Which tokens were drawn; the others are padding.
        kl: The weight of `k3`.
    """
    each = -advantage[:, None] * policy + kl * k3(policy, reference)
    return torch.where(drawn, each, 0.0).sum()


def distinct(texts: list[str], draws: int) -> float:
    """Return the mean share of distinct texts in a group.

    Args:
        texts: The texts, group by group.
        draws: The number of texts in a group.

    >>> distinct(["a", "a", "b", "c"], draws=2)
    0.75
    """
    groups = [texts[start : start + draws] for start in range(0, len(texts), draws)]
    return sum(len(set(group)) / len(group) for group in groups) / len(groups)
