"""Reward texts: by what the reconstructor makes of them, and by functions of the caller.

The reward of an explanation is minus the direction MSE of its reconstruction, ``-2 * (1 -
cosine)``, so 0 at best. A reply that is not a proper explanation gets `FAILED`, and so does a text
that was cut off at the limit: it is trained on like any other, because a policy that learns nothing
from such texts writes ever longer ones. Each token past ``max_new_tokens - length_margin`` costs
`RLSettings.length_penalty`. A caller's own reward is added with its weight::

    def short(texts, vectors):
        return [-len(text.split()) / 20 for text in texts]

    rl("av", "rows.parquet", ar="ar", out="rl", rewards={"short": Reward(short, weight=0.2)})
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ...core.similarity import direction_mse
from ...errors import shown
from ..rows import TrainingError
from .rollout import Rollout
from .settings import RLSettings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

FAILED = -2.0
"""The reward of a failed reply: that of a reconstruction at right angles to the vector."""
OwnReward = Callable[[list[str], "Tensor"], Any]
"""A caller's reward: explanations and the vector of each to one finite number for each."""
Reconstruct = Callable[[list[str]], "Tensor"]
"""Texts to vectors."""


@dataclass(frozen=True)
class Reward:
    """A reward of the caller's own."""

    function: OwnReward
    """Called with the explanations of a step, without tags, and the vector of each ``[texts,
    d_model]``. Failed replies are left out. It returns one finite number for each."""
    weight: float = 1.0
    """What its values are multiplied by."""


@dataclass(frozen=True)
class Rewarded:
    """The rewards of a step."""

    total: Float[Tensor, " texts"]
    """What is trained on."""
    parts: dict[str, float]
    """The mean of each part, before its weight: ``reconstruction`` and the caller's, over the
    explanations; ``length_penalty`` over all texts."""


def rewarded(
    rollout: Rollout,
    reconstruct: Reconstruct,
    settings: RLSettings,
    own: Mapping[str, Reward],
    step: int,
) -> Rewarded:
    """Return the reward of each text.

    Args:
        rollout: The texts of a step.
        reconstruct: The reconstructor.
        settings: Weight of the reconstruction, failures and lengths.
        own: The caller's rewards, by name.
        step: The number of the step, for messages.

    Raises:
        TrainingError: A caller's reward is not one finite number for each text.
    """
    proper = rollout.proper
    told = [rollout.texts[number] for number in proper]
    number = torch.tensor(proper, dtype=torch.long, device="cpu")
    rows = number // rollout.draws
    vectors = rollout.vectors[rows].float().cpu()
    good = torch.zeros(len(told), dtype=torch.float32, device="cpu")
    parts: dict[str, float] = {}
    if told and settings.reconstruction:
        different = list(dict.fromkeys(told))
        place = {text: number for number, text in enumerate(different)}
        back = reconstruct(different)[[place[text] for text in told]]
        found = -direction_mse(back, vectors)
        good += settings.reconstruction * found
        parts["reconstruction"] = float(found.mean())
    for name, each in own.items():
        if told:
            values = _checked(name, each.function(list(told), vectors.clone()), told, step)
            good += each.weight * values
            parts[name] = float(values.mean())
    total = torch.full((len(rollout.texts),), FAILED, dtype=torch.float32, device="cpu")
    total[number] = good
    lost = [length_penalty(each, settings) for each in rollout.lengths]
    penalties = torch.tensor(lost, dtype=torch.float32, device="cpu")
    parts["length_penalty"] = float(penalties.mean())
    return Rewarded(total - penalties, parts)


def length_penalty(tokens: int, settings: RLSettings) -> float:
    """Return what the length of a text costs.

    >>> settings = RLSettings(max_new_tokens=256, length_margin=64, length_penalty=0.01)
    >>> [round(length_penalty(tokens, settings), 2) for tokens in (100, 192, 202, 256)]
    [0.0, 0.0, 0.1, 0.64]
    """
    return settings.length_penalty * max(
        0, tokens - (settings.max_new_tokens - settings.length_margin)
    )


def _checked(name: str, found: Any, texts: Sequence[str], step: int) -> Float[Tensor, " texts"]:
    """Return a caller's rewards as a tensor, if there is one finite number for each text."""
    expected = f"expected {len(texts)} finite numbers, one for each text"
    try:
        values = torch.as_tensor(found, dtype=torch.float32, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise TrainingError(
            f"The reward {name!r} returned {shown(found)} at step {step}: {expected}."
        ) from error
    if tuple(values.shape) != (len(texts),):
        raise TrainingError(
            f"The reward {name!r} returned the shape {list(values.shape)} at step {step}: "
            f"{expected}."
        )
    for text, value in zip(texts, values.tolist(), strict=True):
        if not math.isfinite(value):
            raise TrainingError(
                f"The reward {name!r} is {value} at step {step}, for the text {text[:60]!r}: "
                f"{expected}. Return a number for every text, such as 0 where it does not apply."
            )
    return values
