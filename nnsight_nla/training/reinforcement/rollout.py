"""Draw several texts for each vector with the engine that inference uses.

The engine computes shared tokens once, drops rows that are finished, and draws each row from a
generator of its own, seeded with the step, the vector and the number of the draw. So the texts of a
step do not depend on the batch, and a training that was killed and resumed draws the same ones.
Only the public `NLA.explain` is called: whatever engine the NLA has makes the draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...core.sampling import Sampling
from .settings import RLSettings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ...nla import NLA


@dataclass(frozen=True)
class Rollout:
    """The texts of one step, group by group."""

    vectors: Float[Tensor, "groups d_model"]
    """One vector per group."""
    draws: int
    """Texts per group."""
    ids: list[list[int]]
    """The drawn tokens of each text, with the end-of-sequence token if one was drawn."""
    texts: list[str]
    """The explanations; empty where the reply is not proper, or was cut off."""
    cut: list[bool]
    """Whether a text was cut off at the limit."""

    @property
    def proper(self) -> list[int]:
        """The numbers of the texts that are explanations."""
        return [number for number, text in enumerate(self.texts) if text]

    @property
    def lengths(self) -> list[int]:
        """The number of drawn tokens of each text."""
        return [len(each) for each in self.ids]


def roll_out(
    nla: NLA, vectors: Float[Tensor, "groups d_model"], settings: RLSettings, step: int
) -> Rollout:
    """Draw the texts of one step.

    Args:
        nla: The NLA of the policy.
        vectors: One vector per group, raw.
        settings: Draws, temperature, longest text and seed.
        step: The number of the step; every step draws anew.
    """
    sampling = Sampling(
        temperature=settings.temperature,
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed * 1_000_003 + step,
    )
    handle = nla.explain(vectors, samples=settings.draws, sampling=sampling)
    nla.resolve(handle)
    replies = [
        handle.capture.replies[row, draw]
        for row in range(len(vectors))
        for draw in range(settings.draws)
    ]
    cut = [reply.finish == "length" for reply in replies]
    good = [
        reply.problem is None and not ended and bool(reply.text.strip())
        for reply, ended in zip(replies, cut, strict=True)
    ]
    texts = [reply.text if ok else "" for reply, ok in zip(replies, good, strict=True)]
    return Rollout(vectors, settings.draws, [list(each.ids) for each in replies], texts, cut)
