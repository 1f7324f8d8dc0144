"""The text engine on vLLM: from vectors to requests, and from their tokens to replies.

Every reply has a receipt that vLLM's own process measured: the norms at the marker and the cosine
between the vector and what was written. A reply without one is never a text: its request is sent
again past the prefix cache, and if that measures nothing either, the row has an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import torch

from ...core.sampling import draw_seed
from ...errors import VerbalizationError, shown
from ...models.generation import reply_ends
from ..batch import Batch
from ..choosing import chosen
from . import draws, rows
from .local import LocalEngine
from .requests import Request
from .served import ServedEngine

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from ...checkpoint.prompt import Prompt
    from ...core.sampling import Sampling
    from ...explanation.records import Reply
    from ..choosing import Choices
    from ..engine import EngineOptions, Maker
    from ..streaming import Watch
    from ..verbalizer import Verbalizer
    from .requests import Backend, Measured, Output

_Made = TypeVar("_Made")
_Receipt = tuple[float, float, float]

_TOGETHER = 64
"""How many replies share one request for their receipts."""
_COMPARED = 128
"""How many log-probabilities one request may ask vLLM for."""
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
    if not isinstance(options.vllm, Mapping | None):
        raise VerbalizationError(
            f"vllm={shown(options.vllm)}: expected a dict of vLLM's options, such as "
            "vllm={'max_num_seqs': 512}."
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

    def use_adapter(self, folder: Path) -> None:
        """Verbalize with the adapter in this folder from now on, on the weights of the base.

        Args:
            folder: A LoRA adapter as PEFT saves it. It has to stay until the next text is done.

        Raises:
            VerbalizationError: vLLM runs on a server, which keeps its own.
        """
        self._backend.use_adapter(folder)

    def unload(self) -> None:
        """Stop vLLM, if it runs in this machine."""
        with self._verbalizer.runtime.lock.held():
            self._backend.close()

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
        prompts: Sequence[Prompt] | None = None,
        *,
        watch: Watch | None = None,  # noqa: ARG002  (Texts come when they are finished.)
    ) -> Iterator[tuple[int, Reply | str]]:
        """Yield a row's number and its reply, or why it has none; see `TextEngine`.

        Raises:
            VerbalizationError: The reply does not fit in the context.
            HostError: The server stayed away, or refused a request.
        """
        batch = Batch.of(prompts or [self._verbalizer.prompt] * len(vectors), vectors, given)
        self._verbalizer.check_length(batch.ids.shape[1], sampling)
        seeds = [
            None if sampling.greedy else draw_seed(sampling.seed, vector, sample)
            for vector, sample in zip(vectors, samples, strict=True)
        ]
        ends = tuple(reply_ends(self._verbalizer.av, self._verbalizer.tokenizer))
        requests = [
            replace(each, ends=ends, draw=draws.arguments(sampling, seed))
            for each, seed in zip(
                self._requests(batch, sampling.max_new_tokens), seeds, strict=True
            )
        ]

        def reply(output: Output, receipt: _Receipt) -> Reply:
            return self._verbalizer.reply(output.ids, receipt, sampling)

        return self._replies(requests, batch, reply)

    def choose(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        prompts: Sequence[Prompt],
        choices: Choices,
    ) -> Iterator[tuple[int, Reply | str]]:
        """Yield a row's number and the probabilities of its choices; see `TextEngine`.

        Raises:
            HostError: The server stayed away, or refused a request.
        """
        batch = Batch.of(prompts, vectors, given)
        found: dict[int, dict[tuple[int, ...], Tensor]] = {}
        receipts: dict[int, _Receipt] = {}
        failed: dict[int, str] = {}
        compared = [
            (before, tokens[start : start + _COMPARED])
            for before, tokens in choices.compared.items()
            for start in range(0, len(tokens), _COMPARED)
        ]
        for before, tokens in compared:
            longer = batch.followed_by(before)
            requests = [replace(each, compared=tokens) for each in self._requests(longer, 1)]
            for row, made in self._replies(requests, longer, lambda *each: each):
                if isinstance(made, str):
                    failed[row] = made
                    continue
                output, receipts[row] = made
                said = torch.tensor([output.logprobs[each] for each in tokens], device="cpu")
                paths = [(*before, each) for each in tokens]
                found.setdefault(row, {}).update(zip(paths, said.float()[:, None], strict=True))
        yield from failed.items()
        for row, scores in found.items():
            if row not in failed:
                yield row, chosen(choices, choices.logprobs(scores)[0], receipts[row])

    def _requests(self, batch: Batch, new_tokens: int) -> Iterator[Request]:
        """Make one request for each row.

        Raises:
            VerbalizationError: vLLM would cut the replies.
        """
        context, length = self._backend.context, batch.ids.shape[1]
        if length + new_tokens > context:
            raise VerbalizationError(
                f"A prompt of {length} tokens and a reply of up to {new_tokens} exceed the "
                f"{context} tokens that vLLM was started for. Start it with max_model_len="
                f"{length + new_tokens} or more, or use a smaller Sampling(max_new_tokens=...)."
            )
        for ids, vectors, sites, has in zip(
            batch.ids, batch.vectors, batch.sites, batch.given.tolist(), strict=True
        ):
            places, width = sites.tolist(), vectors.shape[-1]
            embeds = rows.encoded(
                ids.tolist(), places, vectors if has else None, self._backend.dtype, width
            )
            yield Request(embeds, tuple(rows.keys(embeds[places]).tolist()), new_tokens)

    def _replies(
        self,
        requests: Sequence[Request],
        batch: Batch,
        reply: Callable[[Output, _Receipt], _Made],
    ) -> Iterator[tuple[int, _Made | str]]:
        """Run requests; yield each row's number and its reply, or why it has none."""
        given, sites = batch.given.tolist(), batch.sites.tolist()
        unmeasured: list[int] = []
        for row, output, found in self._finished(requests):
            receipt = _receipt(requests[row], sites[row], found)
            if receipt is None:
                unmeasured.append(row)
            else:
                yield row, _judged(output, receipt, reply, given[row])
        # Their markers came out of the prefix cache, and the process has forgotten the receipts.
        again = [replace(requests[row], salt=uuid4().hex) for row in unmeasured]
        for number, output, found in self._finished(again):
            row = unmeasured[number]
            receipt = _receipt(requests[row], sites[row], found)
            yield row, LOST if receipt is None else _judged(output, receipt, reply, given[row])

    def _finished(
        self, requests: Sequence[Request]
    ) -> Iterator[tuple[int, Output, dict[int, Measured]]]:
        """Run requests; yield number, output and measurements, in the order in which they end."""
        done: list[tuple[int, Output]] = []
        left = len(requests)
        for each in self._backend.run(requests) if requests else ():
            done.append(each)
            left -= 1
            if len(done) < _TOGETHER and left:
                continue
            keys = {key for number, _ in done for key in requests[number].keys}
            found = self._backend.receipts(sorted(keys))
            yield from ((number, output, found) for number, output in done)
            done.clear()


def _receipt(request: Request, sites: list[int], found: dict[int, Measured]) -> _Receipt | None:
    """Return the norms at the first marker and the least cosine, if every marker was measured."""
    measured = [found.get(key, {}).get(at) for key, at in zip(request.keys, sites, strict=True)]
    known = [each for each in measured if each is not None]
    if len(known) < len(measured):
        return None
    before, after, _ = known[0]
    return before, after, min(angle for *_, angle in known)


def _judged(
    output: Output, receipt: _Receipt, reply: Callable[[Output, _Receipt], _Made], written: bool
) -> _Made | str:
    """Return the reply, or why the vectors were not `written` as they had to be."""
    before, after, angle = receipt
    if not written:
        return reply(output, (before, after, math.nan))
    return reply(output, receipt) if angle >= _LEAST_COSINE else BENT.format(cosine=angle)
