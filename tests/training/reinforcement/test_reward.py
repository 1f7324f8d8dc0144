"""What a text earns: by hand, with the caller's own rewards, and where those go wrong."""

import math

import pytest
import torch

from nnsight_nla.training import Reward, RLSettings, TrainingError
from nnsight_nla.training.reinforcement.reward import FAILED, rewarded
from nnsight_nla.training.reinforcement.rollout import Rollout

SETTINGS = RLSettings(max_new_tokens=100, length_margin=20, length_penalty=0.1, draws=2)
VECTORS = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
KNOWN = {"right": [3.0, 0.0], "up": [0.0, 1.0], "left": [-1.0, 0.0], "slanted": [1.0, 1.0]}


def rollout(texts, lengths=(3, 3, 3, 3), cut=(False,) * 4):
    return Rollout(VECTORS, 2, [[1] * each for each in lengths], list(texts), list(cut))


def reconstruct(texts):
    assert len(set(texts)) == len(texts), "a text is reconstructed once"
    return torch.tensor([KNOWN[text] for text in texts])


def test_a_reward_is_minus_the_direction_mse():
    found = rewarded(rollout(["right", "left", "up", "slanted"]), reconstruct, SETTINGS, {}, 1)
    expected = [0.0, -4.0, 0.0, -2 * (1 - math.sqrt(0.5))]
    assert found.total.tolist() == pytest.approx(expected, abs=1e-6)
    assert found.parts["reconstruction"] == pytest.approx(sum(expected) / 4)


def test_a_failed_text_earns_minus_two_and_is_not_reconstructed():
    found = rewarded(rollout(["right", "", "", "up"]), reconstruct, SETTINGS, {}, 1)
    assert found.total.tolist() == [0.0, FAILED, FAILED, 0.0] == [0.0, -2.0, -2.0, 0.0]
    nothing = rewarded(rollout([""] * 4), reconstruct, SETTINGS, {"own": Reward(never)}, 1)
    assert nothing.total.tolist() == [FAILED] * 4
    assert nothing.parts == {"length_penalty": 0.0}


def never(texts, vectors):
    raise AssertionError("called without a text")


def test_length_costs_past_the_hinge_and_a_cut_text_pays_it_too():
    texts, lengths = ["right", "right", "up", ""], (80, 81, 100, 100)
    found = rewarded(
        rollout(texts, lengths, (False, False, False, True)), reconstruct, SETTINGS, {}, 1
    )
    assert found.total.tolist() == pytest.approx([0.0, -0.1, -2.0, FAILED - 2.0])
    assert found.parts["length_penalty"] == pytest.approx((0.0 + 0.1 + 2.0 + 2.0) / 4)


def test_own_rewards_are_mixed_with_weights():
    seen = []

    def short(texts, vectors):
        seen.append((texts, vectors))
        return [-float(len(text)) for text in texts]

    own = {"short": Reward(short, weight=0.5), "sure": Reward(lambda t, v: torch.ones(len(t)), 3.0)}
    settings = RLSettings(**{**vars(SETTINGS), "reconstruction": 0.25})
    found = rewarded(rollout(["left", "right", "", "up"]), reconstruct, settings, own, 1)
    assert found.total.tolist() == pytest.approx([-1 - 2 + 3, -2.5 + 3, FAILED, -1 + 3])
    assert found.parts["short"] == pytest.approx(-(4 + 5 + 2) / 3)
    ((texts, vectors),) = seen
    assert texts == ["left", "right", "up"]
    assert torch.equal(vectors, VECTORS[[0, 0, 1]])


def test_without_the_reconstruction_nothing_is_reconstructed():
    settings = RLSettings(**{**vars(SETTINGS), "reconstruction": 0.0})
    own = {"length": Reward(lambda texts, _: [len(each) for each in texts])}
    found = rewarded(rollout(["left", "up", "up", "up"]), never, settings, own, 1)
    assert found.total.tolist() == [4.0, 2.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            [0.0, math.nan, 0.0],
            "The reward 'own' is nan at step 7, for the text 'right': expected 3 finite numbers, "
            "one for each text. Return a number for every text, such as 0 where it does not apply.",
        ),
        (
            [0.0, 1.0, math.inf],
            "The reward 'own' is inf at step 7, for the text 'up': expected 3 finite numbers, one "
            "for each text. Return a number for every text, such as 0 where it does not apply.",
        ),
        (
            [0.0, 1.0],
            "The reward 'own' returned the shape [2] at step 7: expected 3 finite numbers, one for "
            "each text.",
        ),
        (
            0.5,
            "The reward 'own' returned the shape [] at step 7: expected 3 finite numbers, one for "
            "each text.",
        ),
        (
            [[1.0], [2.0], [3.0]],
            "The reward 'own' returned the shape [3, 1] at step 7: expected 3 finite numbers, one "
            "for each text.",
        ),
        (
            None,
            "The reward 'own' returned None at step 7: expected 3 finite numbers, one for each "
            "text.",
        ),
        (
            ["high", "low", "low"],
            "The reward 'own' returned ['high', 'low', 'low'] at step 7: expected 3 finite "
            "numbers, one for each text.",
        ),
    ],
)
def test_an_own_reward_is_one_finite_number_for_each_text(returned, message):
    own = {"own": Reward(lambda texts, vectors: returned)}
    with pytest.raises(TrainingError) as caught:
        rewarded(rollout(["left", "right", "", "up"]), reconstruct, SETTINGS, own, 7)
    assert str(caught.value) == message
