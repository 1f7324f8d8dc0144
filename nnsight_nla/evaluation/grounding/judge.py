"""Ask a language model to judge explanations.

A judge is any callable from prompts to answers, in the same order. There are two: `EndpointJudge`,
a server with an OpenAI-compatible API, and `LocalJudge`, a model on this machine. You can estimate
the maximum cost before a run::

    judge = EndpointJudge("http://127.0.0.1:8000/v1", "Qwen/Qwen3-8B")
    print(estimate(judge.unanswered(prompts), judge.max_tokens, price_in=0.4, price_out=1.6))
    answers = judge(prompts)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...errors import NLAError, shown

Judge = Callable[[Sequence[str]], Sequence[str]]
"""Prompts to answers, in the same order."""
_CHARACTERS = 4
"""The approximate number of characters per token in English."""


class JudgeError(NLAError):
    """A judge cannot be reached, or it did not answer."""


@dataclass(frozen=True)
class Estimate:
    """An estimate of the tokens and the cost of a run."""

    calls: int
    """The number of prompts."""
    prompt_tokens: int
    """The tokens of all prompts, estimated at four characters a token."""
    most_completion_tokens: int
    """The tokens of all answers if each is as long as it may be."""
    price: float | None
    """The price of all these tokens; ``None`` if the prices per token are not known."""

    def __str__(self) -> str:
        price = "" if self.price is None else f", at most about {self.price:z.2f} in all"
        return (
            f"{self.calls:,} calls, about {self.prompt_tokens:,} prompt tokens (estimated from "
            f"their characters), at most {self.most_completion_tokens:,} completion tokens{price}"
        )


def estimate(
    prompts: Sequence[str],
    max_tokens: int,
    price_in: float | None = None,
    price_out: float | None = None,
) -> Estimate:
    """Estimate tokens and cost of a run, before anything is sent.

    Args:
        prompts: The prompts, as of `judged.questions_of` or `EndpointJudge.unanswered`.
        max_tokens: The most tokens of one answer.
        price_in: The price of a million prompt tokens.
        price_out: The price of a million completion tokens, in the same currency.

    Raises:
        NLAError: Only one of the prices is given.

    >>> print(estimate(["About Paris?" * 100] * 2, 400, price_in=1, price_out=2))
    2 calls, about 600 prompt tokens (estimated from their characters), at most 800 completion \
tokens, at most about 0.00 in all
    """
    if (price_in is None) != (price_out is None):
        raise NLAError(
            f"Got price_in={shown(price_in)} and price_out={shown(price_out)}; pass both prices, "
            "each for a million tokens, or none."
        )
    sent = sum(-(-len(prompt) // _CHARACTERS) for prompt in prompts)
    most = len(prompts) * max_tokens
    price = None
    if price_in is not None and price_out is not None:
        price = (sent * price_in + most * price_out) / 1e6
    return Estimate(len(prompts), sent, most, price)
