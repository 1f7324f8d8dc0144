"""The text engine on vLLM: from vectors to requests, and from their tokens to replies.

Every reply has a receipt that vLLM's own process measured: the norms at the marker and the cosine
between the vector and what was written. A reply without one is never a text: its request is sent
again past the prefix cache, and if that measures nothing either, the row has an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from ...core.sampling import draw_seed
from ...errors import VerbalizationError
from ...models.generation import reply_ends
from . import draws, rows
from .local import LocalEngine
from .requests import Request
from .served import ServedEngine

if TYPE_CHECKING:
    import torch
    from jaxtyping import Bool, Float
    from torch import Tensor

    from ...checkpoint.prompt import Prompt
    from ...core.sampling import Sampling
    from ...explanation.records import Reply
    from ..engine import EngineOptions, Maker
    from ..streaming import Watch
    from ..verbalizer import Verbalizer
    from .requests import Backend, Measured

_TOGETHER = 64
"""How many replies share one request for their receipts."""
_LEAST_COSINE = 0.5
"""Rounding stays far above it, also in bfloat16 with a small scale; another vector far below."""

LOST = (
    "was lost in vLLM: its process measured nothing that was written at the marker. Its text was "
    "thrown away"
)
BENT = (
    "was not written as it is in vLLM: the cosine between it and what was added is {cosine:.3f}. "
    "Its text was thrown away"
)


def maker(options: EngineOptions) -> Maker:
    """Return the maker of engines that share one vLLM, made with the first of them.

    Raises:
        VerbalizationError: The verbalizer is a model that the caller loaded.
    """
    if options.live and options.url is None:
        raise VerbalizationError(
            "engine='vllm' loads the weights itself, so it cannot use a model that is already "
            "loaded. Pass its path or id: NLA('path or id', engine='vllm')."
        )
    made: list[Backend] = []

    def make(verbalizer: Verbalizer) -> VllmEngine:
        if not made:
            given = dict(options.vllm or {})
            made.append(
                LocalEngine(verbalizer, options.load, given)
                if options.url is None
                else ServedEngine(options.url, verbalizer, given)
            )
        return VllmEngine(verbalizer, made[0])

    return make


class VllmEngine:
    """Verbalizes on vLLM; a `TextEngine`."""

    def __init__(self, verbalizer: Verbalizer, backend: Backend) -> None:
        """Keep what is needed.

        Args:
            verbalizer: The prompt, the injection and the tokenizer; its weights are not loaded.
            backend: Runs the requests.
        """
        self._verbalizer, self._backend = verbalizer, backend

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the verbalizer computes in."""
        return self._backend.dtype

    @contextmanager
    def use(self) -> Iterator[None]:
        """Wait for other threads, and start vLLM if it does not run."""
        with self._verbalizer.runtime.lock.held():
            self._backend.start()
            yield

    def rows_that_fit(self, new_tokens: int) -> int:  # noqa: ARG002
        """Return how many rows one call of `verbalize` may have; vLLM itself minds its memory."""
        return self._backend.rows

    def engine_info(self) -> dict[str, Any]:
        """Return where vLLM runs."""
        return {"name": "vllm", "why": None, **self._backend.info()}

    def unload(self) -> None:
        """Stop vLLM, if it runs in this machine."""
        with self._verbalizer.runtime.lock.held():
            self._backend.close()

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
        prompts: Sequence[Prompt] | None = None,  # noqa: ARG002  (An oracle's; it is refused.)
        *,
        watch: Watch | None = None,  # noqa: ARG002  (Texts come when they are finished.)
    ) -> Iterator[tuple[int, Reply | str]]:
        """Yield a row's number and its reply, or why it has none; see `TextEngine`.

        Raises:
            VerbalizationError: The reply does not fit in the context.
            HostError: The server stayed away, or refused a request.
        """
        self._verbalizer.check_length(len(self._verbalizer.prompt.ids), sampling)
        requests = [
            self._request(vector if has else None, vector, sample, sampling)
            for vector, has, sample in zip(vectors, given.tolist(), samples, strict=True)
        ]
        unmeasured: list[int] = []
        for row, ids, measured in self._finished(requests):
            if (receipt := self._receipt(measured)) is None:
                unmeasured.append(row)
            else:
                yield row, self._judged(ids, receipt, sampling, bool(given[row]))
        # Their markers came out of the prefix cache, and the process has forgotten the receipts.
        again = [replace(requests[row], salt=uuid4().hex) for row in unmeasured]
        for number, ids, measured in self._finished(again):
            row, receipt = unmeasured[number], self._receipt(measured)
            found = (
                LOST if receipt is None else self._judged(ids, receipt, sampling, bool(given[row]))
            )
            yield row, found

    def _request(
        self, written: Tensor | None, vector: Tensor, sample: int, sampling: Sampling
    ) -> Request:
        prompt = self._verbalizer.prompt
        embeds = rows.encoded(
            prompt.ids, prompt.sites, written, self._backend.dtype, vector.shape[-1]
        )
        seed = None if sampling.greedy else draw_seed(sampling.seed, vector, sample)
        return Request(
            embeds,
            int(rows.keys(embeds[prompt.marker_position][None])),
            sampling.max_new_tokens,
            tuple(reply_ends(self._verbalizer.av, self._verbalizer.tokenizer)),
            draws.arguments(sampling, seed),
        )

    def _finished(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[int, list[int], Measured | None]]:
        """Run requests; yield number, tokens and measurements, in the order in which they end."""
        done: list[tuple[int, list[int]]] = []
        left = len(requests)
        for each in self._backend.run(requests) if requests else ():
            done.append(each)
            left -= 1
            if len(done) < _TOGETHER and left:
                continue
            found = self._backend.receipts(sorted({requests[number].key for number, _ in done}))
            yield from ((number, ids, found.get(requests[number].key)) for number, ids in done)
            done.clear()

    def _receipt(self, measured: Measured | None) -> tuple[float, float, float] | None:
        """Return the receipt of the first marker, if every marker has one."""
        sites = self._verbalizer.prompt.sites
        if measured is None or any(site not in measured for site in sites):
            return None
        return measured[sites[0]]

    def _judged(
        self,
        ids: list[int],
        receipt: tuple[float, float, float],
        sampling: Sampling,
        written: bool,
    ) -> Reply | str:
        """Return the reply, or why the vector was not `written` as it had to be."""
        before, after, angle = receipt
        if not written:
            return self._verbalizer.reply(ids, (before, after, math.nan), sampling)
        if not angle >= _LEAST_COSINE:
            return BENT.format(cosine=angle)
        return self._verbalizer.reply(ids, receipt, sampling)
