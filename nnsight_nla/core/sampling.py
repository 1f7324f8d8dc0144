"""Choose tokens so that a draw depends only on its own vector.

Greedy decoding is the default. At a temperature above 0, a draw is the arg-max of the logits plus
Gumbel noise, which samples from their softmax. Each row has its own noise generator, seeded with
(seed, bytes of the vector, sample number). So a row's text depends neither on the batch nor on the
row's position in it, and ``generate`` itself runs with ``do_sample=False``::

    sampling = Sampling(temperature=1.0, seed=7)
    seeds = [draw_seed(sampling.seed, vector, 0) for vector in vectors]
    model.generate(..., do_sample=False, logits_processor=sampling.processors(seeds))
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..errors import VerbalizationError, shown
from .numeric import is_int, is_real

if TYPE_CHECKING:
    from transformers import LogitsProcessorList


@dataclass(frozen=True)
class Sampling:
    """The options for choosing a verbalizer's tokens."""

    temperature: float = 0.0
    """0 is greedy; otherwise the logits are divided by it before drawing."""
    top_p: float = 1.0
    """Draw from the smallest set of tokens with this total probability; 1 keeps all tokens."""
    top_k: int = 0
    """Draw from this number of most likely tokens; 0 keeps all tokens."""
    max_new_tokens: int = 200
    """The maximum number of tokens in a reply."""
    seed: int = 0
    """A draw depends on this seed, the vector and the sample number only."""
    upto: Literal["line"] | int | None = None
    """Where an explanation ends before its closing tag: after its first line, or after this number
    of tokens. For verbalizers whose first words carry most, and for those that write no tags."""

    def __post_init__(self) -> None:
        """Check every field."""
        for name, valid, expected in (
            ("temperature", is_real(t := self.temperature) and t >= 0, "0 (greedy) or more"),
            ("top_p", is_real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", is_int(self.top_k, 0), "a whole number, 0 for no limit"),
            ("max_new_tokens", is_int(self.max_new_tokens, 1), "1 or more"),
            ("seed", is_int(self.seed), "a whole number"),
            (
                "upto",
                self.upto in (None, "line") or is_int(self.upto, 1),
                "'line', or a number of tokens from 1",
            ),
        ):
            if not valid:
                raise VerbalizationError(
                    f"Sampling({name}={shown(getattr(self, name))}): expected {expected}."
                )

    @property
    def greedy(self) -> bool:
        """Whether every draw takes the most likely token."""
        return self.temperature == 0

    def processors(self, row_seeds: list[int]) -> LogitsProcessorList:
        """Return the logits processors that draw by these options under ``do_sample=False``.

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
    """A logits processor that adds Gumbel noise, from a separate generator for each row.

    The noise is drawn on the CPU, so a draw is the same on every device.
    """

    def __init__(self, row_seeds: list[int]) -> None:
        self.seeds = row_seeds
        self.generators: list[torch.Generator] = []  # Made where they run.

    def __call__(self, input_ids: Any, scores: Any) -> Any:  # noqa: ARG002, D102
        if not self.generators:
            self.generators = [torch.Generator("cpu").manual_seed(seed) for seed in self.seeds]
        noise = torch.empty(scores.shape, dtype=torch.float32, device="cpu")
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores - noise.log().to(scores.device)

    def keep(self, rows: list[int]) -> None:
        """Keep only these rows, each with its own generator state."""
        self.seeds = [self.seeds[row] for row in rows]
        self.generators = [self.generators[row] for row in rows]


def draw_seed(seed: int, vector: Tensor, sample: int) -> int:
    """Return the seed of one draw: a hash of `seed`, the vector's float32 bytes and `sample`."""
    digest = hashlib.blake2b(f"{seed} {sample} ".encode(), digest_size=8)
    digest.update(vector.detach().float().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(digest.digest(), "little") >> 1
