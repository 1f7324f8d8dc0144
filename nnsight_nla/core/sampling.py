"""How tokens are chosen, so that a draw depends on nothing but its own vector.

Greedy decoding is the default. At a temperature above 0 a draw is the arg-max of the logits plus
Gumbel noise (which samples from their softmax), and the noise comes from a generator of the row's
own, seeded with (seed, the vector's bytes, the sample's number). So neither the batch a row happens
to be in nor its place there changes its text, and ``generate`` itself runs with
``do_sample=False``.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import VerbalizationError

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


@dataclass(frozen=True)
class Sampling:
    """How a verbalizer's tokens are chosen."""

    temperature: float = 0.0
    """0 is greedy; above, logits are divided by it before drawing."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this probability; 1 is all of them."""
    top_k: int = 0
    """Draw from this many most likely tokens; 0 is all of them."""
    max_new_tokens: int = 200
    """The most tokens a reply may have."""
    seed: int = 0
    """With the vector's bytes and the sample's number, all that a draw depends on."""

    def __post_init__(self) -> None:
        """Refuse values that have no meaning."""
        for name, valid, expected in (
            (
                "temperature",
                _real(self.temperature) and self.temperature >= 0,
                "0 (greedy) or more",
            ),
            ("top_p", _real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", _whole(self.top_k) and self.top_k >= 0, "a whole number, 0 for no limit"),
            (
                "max_new_tokens",
                _whole(self.max_new_tokens) and self.max_new_tokens >= 1,
                "1 or more",
            ),
            ("seed", _whole(self.seed), "a whole number"),
        ):
            if not valid:
                raise VerbalizationError(
                    f"Sampling({name}={getattr(self, name)!r}): expected {expected}."
                )

    @property
    def greedy(self) -> bool:
        """Whether every draw takes the most likely token."""
        return self.temperature == 0

    def processors(self, row_seeds: list[int]) -> LogitsProcessorList:
        """The logits processors that make ``do_sample=False`` draw as this record says.

        Args:
            row_seeds: One seed per row of the batch, from `draw_seed`.
        """
        from transformers import (
            LogitsProcessorList,
            TemperatureLogitsWarper,
            TopKLogitsWarper,
            TopPLogitsWarper,
        )

        if self.greedy:
            return LogitsProcessorList()
        chain = LogitsProcessorList([TemperatureLogitsWarper(float(self.temperature))])
        if self.top_k > 0:
            chain.append(TopKLogitsWarper(self.top_k))
        if self.top_p < 1:
            chain.append(TopPLogitsWarper(self.top_p))
        chain.append(GumbelNoise(row_seeds))
        return chain


class GumbelNoise:
    """Adds Gumbel noise to the logits, each row's from a generator of its own.

    The noise is drawn on the CPU, so a draw is the same on every device.
    """

    def __init__(self, row_seeds: list[int]) -> None:
        self.seeds = row_seeds
        self.generators: list[torch.Generator] = []  # made where they run: they may travel

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002, D102
        if not self.generators:
            self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        noise = torch.empty(scores.shape, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log().to(scores.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows, each with its own generator as far as it has got."""
        self.seeds = [self.seeds[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]


def draw_seed(seed: int, vector: Tensor, sample: int) -> int:
    """The seed of one draw: a hash of (seed, the vector's float32 bytes, the sample's number)."""
    digest = hashlib.blake2b(f"{seed} {sample} ".encode(), digest_size=8)
    digest.update(vector.detach().float().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1


def _real(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
