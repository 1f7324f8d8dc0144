"""The text engine on vLLM: from vectors to requests, and from their tokens to replies.

Every reply has a receipt that vLLM's own process measured: the norms at the marker and the cosine
between the vector and what was written. A reply without one is never a text: its request is sent
again past the prefix cache, and if that measures nothing either, the row has an error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
_Ids = tuple[int, ...]

_ROWS = 4096
"""How many rows one call of `verbalize` may have; vLLM has only some of them under way."""
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
        VerbalizationError: The verbalizer is a model that the caller loaded or that is to run on
            NDIF, or the options are no dictionary.
    """
    if options.live and options.url is None:
        raise VerbalizationError(
            "engine='vllm' loads the weights itself, so it cannot use a model that is already "
            "loaded. Pass its path or id: NLA('path or id', engine='vllm')."
        )
    if options.remote:
        raise VerbalizationError(
            "remote=True runs the verbalizer on an NDIF host, engine='vllm' on vLLM. Leave one "
            "out. (The target's own trace may be remote: model.trace(..., remote=True).)"
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

    @property
    def concurrent(self) -> bool:
        """True: threads share what vLLM has under way."""
        return True

    def turn(self) -> AbstractContextManager[Any]:
        """Return at once."""
        return nullcontext()

    @contextmanager
    def use(self) -> Iterator[None]:
        """Start vLLM if it does not run."""
        self._backend.start()
        yield

    def rows_that_fit(self, new_tokens: int) -> int:  # noqa: ARG002
        """Return how many rows one call of `verbalize` may have; vLLM itself minds its memory."""
        return _ROWS

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
    ) -> Generator[tuple[int, Reply | str], None, None]:
        """Yield a row's number and its reply, or why it has none; see `TextEngine`.

        Raises:
            VerbalizationError: The reply does not fit in the context.
            HostError: The server stayed away, or refused a request.
        """
        batch = Batch.of(prompts or [self._verbalizer.prompt] * len(vectors), vectors, given)
        self._verbalizer.check_length(batch.ids.shape[1], sampling)
        self._check_context(batch, sampling.max_new_tokens)
        seeds = [
            None if sampling.greedy else draw_seed(sampling.seed, vector, sample)
            for vector, sample in zip(vectors, samples, strict=True)
        ]
        ends = tuple(reply_ends(self._verbalizer.av, self._verbalizer.tokenizer))

        def request(row: int) -> Request:
            plain = self._request(batch, row, sampling.max_new_tokens)
            return replace(plain, ends=ends, draw=draws.arguments(sampling, seeds[row]))

        def reply(output: Output, receipt: _Receipt) -> Reply:
            return self._verbalizer.reply(output.ids, receipt, sampling)

        return self._replies(request, batch, reply)

    def choose(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        prompts: Sequence[Prompt],
        choices: Choices,
    ) -> Generator[tuple[int, Reply | str], None, None]:
        """Yield a row's number and the probabilities of its choices; see `TextEngine`.

        Raises:
            HostError: The server stayed away, or refused a request.
        """
        batch = Batch.of(prompts, vectors, given)
        found: dict[int, dict[_Ids, Tensor]] = {}
        receipts: dict[int, _Receipt] = {}
        failed: dict[int, str] = {}
        compared = [
            (before, tokens[start : start + _COMPARED])
            for before, tokens in choices.compared.items()
            for start in range(0, len(tokens), _COMPARED)
        ]
        for before, tokens in compared:
            longer = batch.followed_by(before)
            self._check_context(longer, 1)

            def request(row: int, longer: Batch = longer, tokens: _Ids = tokens) -> Request:
                return replace(self._request(longer, row, 1), compared=tokens)

            for row, made in self._replies(request, longer, lambda *each: each):
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

    def _check_context(self, batch: Batch, new_tokens: int) -> None:
        """Check that vLLM will not cut the replies.

        Raises:
            VerbalizationError: It would.
        """
        context, length = self._backend.context, batch.ids.shape[1]
        if length + new_tokens > context:
            raise VerbalizationError(
                f"A prompt of {length} tokens and a reply of up to {new_tokens} exceed the "
                f"{context} tokens that vLLM was started for. Start it with max_model_len="
                f"{length + new_tokens} or more, or use a smaller Sampling(max_new_tokens=...)."
            )

    def _request(self, batch: Batch, row: int, new_tokens: int) -> Request:
        ids, vectors, places = batch.ids[row], batch.vectors[row], batch.sites[row].tolist()
        written = vectors if batch.given[row] else None
        width = vectors.shape[-1]
        embeds = rows.encoded(ids.tolist(), places, written, self._backend.dtype, width)
        return Request(embeds, tuple(rows.keys(embeds[places]).tolist()), new_tokens)

    def _replies(
        self,
        request: Callable[[int], Request],
        batch: Batch,
        reply: Callable[[Output, _Receipt], _Made],
    ) -> Generator[tuple[int, _Made | str], None, None]:
        """Run the request of each row; yield its number and its reply, or why it has none."""
        given, sites = batch.given.tolist(), batch.sites.tolist()
        unmeasured: list[int] = []
        for row, output, receipt in self._finished(range(len(given)), request, sites):
            if receipt is None:
                unmeasured.append(row)
            else:
                yield row, _judged(output, receipt, reply, given[row])

        def past_the_cache(row: int) -> Request:
            return replace(request(row), salt=uuid4().hex)

        # Their markers came out of the prefix cache, and the process has forgotten the receipts.
        for row, output, receipt in self._finished(unmeasured, past_the_cache, sites):
            yield row, LOST if receipt is None else _judged(output, receipt, reply, given[row])

    def _finished(
        self, wanted: Sequence[int], request: Callable[[int], Request], sites: list[list[int]]
    ) -> Iterator[tuple[int, Output, _Receipt | None]]:
        """Run the requests of these rows; yield row, output and receipt as they end."""
        keys: dict[int, _Ids] = {}

        def kept(row: int) -> Request:
            made = request(row)
            keys[row] = made.keys
            return made

        done: list[tuple[int, Output]] = []
        left = len(wanted)
        for each in self._backend.run(wanted, kept) if wanted else ():
            done.append(each)
            left -= 1
            if len(done) < _TOGETHER and left:
                continue
            found = self._backend.receipts(sorted({key for row, _ in done for key in keys[row]}))
            for row, output in done:
                yield row, output, _receipt(keys.pop(row), sites[row], found)
            done.clear()


def _receipt(keys: _Ids, sites: list[int], found: dict[int, Measured]) -> _Receipt | None:
    """Return the norms at the first marker and the least cosine, if every marker was measured."""
    measured = [found.get(key, {}).get(at) for key, at in zip(keys, sites, strict=True)]
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
