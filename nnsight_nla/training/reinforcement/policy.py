"""Compute the log-probabilities of drawn tokens in the verbalizer's training forward.

The vector is written by the same `injection.write` as in every inference. The draws of one vector
share its prompt, so the prompt is run once for each vector, under autograd, and its keys and values
are repeated for the draws, as the fast engine does::

    policy = Policy(verbalizer, settings)
    with policy.writing():
        found = policy(vectors, ids)       # ids of 8 draws for each vector
        found.logprobs, found.drawn, found.entropy

With gradient checkpointing, and for a model whose cache cannot be repeated, each draw runs with its
prompt in front of it instead.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ...models import hosts
from ...models.head import contiguous_head
from ...verbalize.decoding import unfit
from ...verbalize.states import keeps_states
from ...verbalize.verbalizer import Verbalizer
from ..verbalizer import InjectionHook, response_logits, writing
from .recomputing import recomputing
from .settings import RLSettings


@dataclass(frozen=True)
class Scored:
    """Drawn tokens, scored by a policy."""

    logprobs: Float[Tensor, "texts tokens"]
    """The log-probability of each token at the draws' temperature, in nats."""
    drawn: Bool[Tensor, "texts tokens"]
    """Which tokens were drawn; the others are padding."""
    entropy: Float[Tensor, "texts tokens"]
    """The entropy of the distribution that each token was drawn from, in nats; no gradients."""


class Policy:
    """A verbalizer under training."""

    def __init__(self, verbalizer: Verbalizer, settings: RLSettings) -> None:
        """Choose how prompts are run.

        Args:
            verbalizer: The verbalizer, with its weights loaded; it draws the rollouts too.
            settings: Temperature, draws, gradient checkpointing.
        """
        self.module: Any = hosts.module_of(verbalizer.av)
        self._prompt, self._injection = verbalizer.prompt, verbalizer.checkpoint.injection
        self._temperature, self._draws = settings.temperature, settings.draws
        self._recompute = settings.activations == "recompute"
        self._config = hosts.text_config(verbalizer.av)
        longest = len(self._prompt.ids) + settings.max_new_tokens
        self.shares_prompts = (
            not self._recompute
            and unfit(verbalizer.av) is None
            and not keeps_states(self._config)  # They are overwritten, which autograd refuses.
            and _reaches(self._config, longest)
        )
        self._hook: InjectionHook | None = None

    @contextmanager
    def writing(self) -> Generator[None, None, None]:
        """Register the hook that writes vectors while the block runs; it is silent in rollouts."""
        sites = self._prompt.sites
        at = [each - sites[0] for each in sites] if self.shares_prompts else sites
        with contiguous_head(self.module), writing(self.module, at, self._injection) as hook:
            self._hook = hook
            try:
                yield
            finally:
                self._hook = None

    @contextmanager
    def given(self, vectors: Float[Tensor, "rows d_model"] | None) -> Generator[None, None, None]:
        """Write these vectors in the forward and backward passes of the block."""
        if self._hook is None:
            raise RuntimeError("A policy scores inside of `with policy.writing():`.")
        self._hook.vectors = vectors
        try:
            yield
        finally:
            self._hook.vectors = None

    @contextmanager
    def scoring(
        self, vectors: Float[Tensor, "groups d_model"], ids: Sequence[Sequence[int]]
    ) -> Generator[Scored, None, None]:
        """Score drawn tokens; call ``backward()`` inside the block, as it may run blocks again.

        Args:
            vectors: One vector per group.
            ids: The drawn tokens of each text, group by group.
        """
        device = self.module.device
        width = max(map(len, ids))
        filled = [[*each, *[each[-1]] * (width - len(each))] for each in ids]
        padded = torch.tensor(filled, device=device)
        lengths = torch.tensor([[len(each)] for each in ids], device=device)
        drawn = torch.arange(width, device=device)[None] < lengths
        vectors = vectors.to(device)
        with recomputing(self.module, on=self._recompute and torch.is_grad_enabled()):
            if self.shares_prompts:
                logits = self._shared(vectors, padded)
                yield self._scored(logits, padded, drawn)
            else:
                rows = vectors.repeat_interleave(self._draws, 0)
                prompt = torch.tensor(self._prompt.ids, device=device).expand(len(rows), -1)
                batch = {"input_ids": torch.cat([prompt, padded], 1)}
                with self.given(rows):
                    logits = response_logits(self.module, batch, prompt.shape[1])
                    yield self._scored(logits, padded, drawn)

    def _shared(
        self, vectors: Float[Tensor, "groups d_model"], ids: Int[Tensor, "texts tokens"]
    ) -> Float[Tensor, "texts tokens vocabulary"]:
        """Run the prompt before the marker once, the rest once a vector, and the draws after it."""
        prompt = torch.tensor([self._prompt.ids], device=ids.device)
        start, cache = self._prompt.sites[0], DynamicCache(config=self._config)
        options: dict[str, Any] = {"past_key_values": cache, "use_cache": True}
        if start:
            self.module(input_ids=prompt[:, :start], logits_to_keep=1, **options)
            cache.batch_repeat_interleave(len(vectors))
        rest = prompt[:, start:].expand(len(vectors), -1)
        with self.given(vectors):
            first = self.module(input_ids=rest, logits_to_keep=1, **options).logits
        cache.batch_repeat_interleave(self._draws)
        first = first.repeat_interleave(self._draws, 0)
        if ids.shape[1] == 1:
            return first
        after = self.module(input_ids=ids[:, :-1], **options).logits
        return torch.cat([first, after], 1)

    def _scored(self, logits: Tensor, ids: Tensor, drawn: Tensor) -> Scored:
        logits = logits.float() / self._temperature
        total = logits.logsumexp(-1)
        chosen = logits.gather(-1, ids[..., None])[..., 0]
        with torch.no_grad():
            mean = ((logits - total[..., None]).exp() * logits).sum(-1)
        return Scored(chosen - total, drawn, total.detach() - mean)


def _reaches(config: Any, longest: int) -> bool:
    """Return whether no layer of the cache forgets a token of a text of this length."""
    layers = DynamicCache(config=config).layers
    windows = [getattr(layer, "sliding_window", None) or longest for layer in layers]
    return min(windows, default=longest) >= longest
