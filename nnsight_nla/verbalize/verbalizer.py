"""Run the activation verbalizer (AV): write vectors at the injection site and generate.

One call runs one batch. A verbalizer's prompt is the same in every row; an oracle's has the row's
question. Row i's vectors are written at the markers, into the injection site's output, during the
prefill (a plain read inside nnsight's ``generate`` sees the prefill); the rest is ordinary
generation::

    with av.generate(ids, ...) as tracer:
        before = site.output
        site.output = write_slots(before, vectors, marker_positions, injection)
        sequences = tracer.result.save()
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import nnsight
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from .. import _compat
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.reply import CLOSE, OPEN, complete, extract, first_line
from ..core.injection import write_slots
from ..core.sampling import Sampling, draw_seed
from ..core.similarity import cosine
from ..errors import CheckpointError, InjectionError, VerbalizationError
from ..explanation.records import Reply
from ..models import hosts
from ..models.generation import greedy, reply_ends
from ..models.head import contiguous_head
from ..models.packing import packed
from ..models.rotary import length_of_change
from ..remote.ndif import send
from .batch import Batch
from .cache import in_place
from .choosing import Choices, choose
from .decoding import (
    AT_A_HOST,
    ClosedRows,
    Closing,
    Engine,
    check_engine,
    decode,
    rows_that_fit,
    unfit,
)
from .states import keeps_states, reach, repeat
from .streaming import partial_text

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from nnsight import TransformersModel

    from ..models.runtime import Runtime
    from .streaming import Watch


# Remote verbalizers whose host keeps the cache in another process, as the first request shows.
_SEPARATE: weakref.WeakSet[Any] = weakref.WeakSet()


class Verbalizer:
    """An AV with its prompt and its injection site."""

    def __init__(
        self,
        runtime: Runtime,
        checkpoint: Checkpoint,
        prompt: Prompt,
        *,
        engine: Engine = "fast",
        tokenizer: Any = None,
    ) -> None:
        """Check that the model fits `checkpoint`; loads no weights.

        Args:
            runtime: Runs the AV.
            checkpoint: What the AV was trained with.
            prompt: The checkpoint's prompt, rendered.
            engine: How replies are generated; see `NLA`.
            tokenizer: Decodes the replies; the model's own unless given.

        Raises:
            CheckpointError: Another width, no such injection layer, too short a context, or an
                architecture whose residual cannot be written.
        """
        self.runtime, self.checkpoint, self.prompt = runtime, checkpoint, prompt
        self.engine: Engine = check_engine(engine)
        self.tokenizer = tokenizer or runtime.model.tokenizer
        config, name = hosts.text_config(self.av), runtime.name
        self._change = length_of_change(config)
        try:
            width, depth = hosts.width(self.av), hosts.depth(self.av)
        except InjectionError as error:
            raise CheckpointError(str(error)) from error
        if width != checkpoint.d_model:
            raise CheckpointError(
                f"{name} has d_model {width}, its checkpoint says "
                f"{checkpoint.d_model}. Use the weights and the sidecar of one checkpoint."
            )
        layer = checkpoint.injection.layer
        if layer is not None and layer >= depth:
            raise CheckpointError(
                f"The vector is to be written at block {layer}, {name} has blocks 0 to {depth - 1}."
            )
        try:
            self.site  # noqa: B018  (It finds the block and checks it.)
            hosts.check_generates(self.av)
        except InjectionError as error:
            raise CheckpointError(str(error)) from error
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        if len(prompt.ids) >= self.context:
            raise CheckpointError(
                f"The verbalizer's prompt has {len(prompt.ids)} tokens, {name} reads "
                f"{self.context} at most. Shorten the template: "
                "NLA(..., checkpoint=Checkpoint(template=...))."
            )

    @property
    def av(self) -> TransformersModel:
        """The AV's nnsight model."""
        return self.runtime.model

    @property
    def site(self) -> Any:
        """The envoy whose output the vector is written into."""
        layer = self.checkpoint.injection.layer
        return hosts.embedding(self.av) if layer is None else hosts.block(self.av, layer)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the AV computes in."""
        return hosts.dtype_of(self.av)

    @property
    def concurrent(self) -> bool:
        """False: the model runs for one thread at a time."""
        return False

    def turn(self) -> AbstractContextManager[Any]:
        """Wait until no other thread runs the model."""
        return self.runtime.lock.held()

    def use(self) -> AbstractContextManager[Any]:
        """Make ready to verbalize; see `Runtime.use`."""
        return self.runtime.use()

    def unload(self) -> None:
        """Do nothing: the weights are the runtime's."""

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
        prompts: Sequence[Prompt] | None = None,
        *,
        watch: Watch | None = None,
    ) -> Generator[tuple[int, Reply], None, None]:
        """Write each row's vectors and generate, in one batch. Call it inside ``runtime.use()``.

        Args:
            vectors: The unscaled vectors; a row that is not `given` may have any values.
            given: Which rows get their vector; the others are the null control.
            samples: The sample number of each row.
            sampling: How tokens are chosen.
            prompts: The prompt of each row, of one length, for an oracle.
            watch: See `TextEngine`; called in a local run of the fast engine.

        Yields:
            A row's number and its `Reply`, in the order in which rows finish.

        Raises:
            VerbalizationError: The reply does not fit in the context.
        """
        batch = Batch.of(prompts or [self.prompt] * len(vectors), vectors, given)
        self.check_length(batch.ids.shape[1], sampling)
        seeds = (
            []
            if sampling.greedy
            else [
                draw_seed(sampling.seed, vector, sample)
                for vector, sample in zip(vectors, samples, strict=True)
            ]
        )
        change = self._change
        # A longer prompt has other frequencies than its beginning, so that none can be shared.
        if self.why_plain is None and (change is None or batch.ids.shape[1] <= change):
            with self.packed(len(vectors)):
                replies = self._fast(batch, seeds, sampling, watch)
                if replies is not None:
                    yield from replies
                    return
        rows = len(vectors)
        # A state that is no cache of transformers' (RWKV) is not kept apart by row.
        size = 1 if hosts.keeps_state(self.av) else rows
        for start in range(0, rows, size):
            part = slice(start, start + size)
            one = self._plain(batch[part], seeds[part], sampling)
            yield from ((start + row, reply) for row, reply in one)

    def choose(
        self,
        vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows slots d_model"],
        given: Bool[Tensor, " rows"],
        prompts: Sequence[Prompt],
        choices: Choices,
    ) -> Generator[tuple[int, Reply], None, None]:
        """Compare the choices of each row's question, in one batch; see `choosing`."""
        return choose(self, Batch.of(prompts, vectors, given), choices)

    def check_length(self, prompt: int, sampling: Sampling) -> None:
        """Raise if a prompt and its longest reply do not fit in the context or its frequencies.

        Args:
            prompt: The number of its tokens.
            sampling: Has the longest reply.
        """
        if prompt + sampling.max_new_tokens > self.context:
            raise VerbalizationError(
                f"max_new_tokens={sampling.max_new_tokens} after a prompt of {prompt} tokens "
                f"exceeds the verbalizer's context of {self.context}. "
                f"Use Sampling(max_new_tokens={self.context - prompt}) or less."
            )
        change = self._change
        if change is not None and prompt <= change < prompt + sampling.max_new_tokens - 1:
            raise VerbalizationError(
                f"max_new_tokens={sampling.max_new_tokens} after a prompt of {prompt} tokens "
                f"exceeds {change} tokens, after which {self.runtime.name} has other rotary "
                "frequencies (longrope), also for the tokens before, so that the vector would be "
                f"lost. Use Sampling(max_new_tokens={change - prompt + 1}) or less."
            )

    def packed(self, rows: int) -> AbstractContextManager[None]:
        """Multiply by packed weights while the block runs, where that is possible."""
        if self.runtime.remote or _compat.has_edits(self.av):
            return nullcontext()
        return packed(hosts.module_of(self.av), rows)

    @property
    def why_plain(self) -> str | None:
        """The reason for using nnsight's own ``generate``; ``None`` if decoding is fast."""
        if self.runtime.remote and self.av in _SEPARATE:
            return "the host runs blocks in another process than the model and its cache"
        if self.runtime.remote and keeps_states(hosts.text_config(self.av)):
            return "states are repeated and selected in local runs only"
        return "engine='generate' was requested" if self.engine == "generate" else unfit(self.av)

    def info(self) -> dict[str, Any]:
        """Return the settings of this verbalizer as plain values."""
        checkpoint = self.checkpoint
        return {
            "verbalizer": self.runtime.name,
            "verbalizer_base": self.runtime.base,
            "weights_loaded": self.runtime.loaded,
            "layer": checkpoint.layer,
            "d_model": checkpoint.d_model,
            "base_model": checkpoint.base_model,
            "injection": vars(checkpoint.injection),
            "marker": {
                "text": checkpoint.marker,
                "id": checkpoint.marker_id,
                "left_id": checkpoint.left_id,
                "right_id": checkpoint.right_id,
                "position": self.prompt.marker_position,
            },
            "prompt_tokens": len(self.prompt.ids),
            "prompt_date": self.prompt.date,
        }

    def engine_info(self) -> dict[str, str | None]:
        """Return which engine runs, and why if it is not the fast one."""
        why = self.why_plain
        return {"name": "fast" if why is None else "generate", "why": why}

    def rows_that_fit(self, new_tokens: int) -> int:
        """Return how many rows a batch may have in the memory that is free."""
        if self.runtime.remote:
            return AT_A_HOST
        prompt = len(self.prompt.ids)
        # Whether a model with states shares the prompt is known when it has run.
        whole = self.why_plain or keeps_states(hosts.text_config(self.av))
        rest = prompt if whole else prompt - self.prompt.marker_position
        return rows_that_fit(self.runtime, prompt=prompt, rest=rest, new_tokens=new_tokens)

    def _fast(
        self, batch: Batch, seeds: list[int], sampling: Sampling, watch: Watch | None
    ) -> Iterator[tuple[int, Reply]] | None:
        """Compute the prefix once, prefill each distinct row once, and decode.

        Returns:
            The replies; ``None`` if the host keeps the cache in another process, or the model
            does not fill the cache or does not continue from it.
        """
        different = batch.different()
        prefilled = list(dict.fromkeys(different))
        rows = torch.tensor([prefilled.index(each) for each in different], device="cpu")
        batch = batch[prefilled]
        length = batch.ids.shape[1]
        settings = {
            "processors": sampling.processors(seeds),
            "closed": self._ending(sampling),
            "ends": reply_ends(self.av, self.tokenizer),
            "limit": sampling.max_new_tokens,
        }
        if self.runtime.remote:
            what = f"The request to verbalize {len(rows)} vectors with {self.runtime.name}"
            filled, marker, done = send(lambda: self._request(batch, rows, settings), what)
            if not filled:
                _SEPARATE.add(self.av)
                return None
        else:
            shared = self._shared(batch)
            if shared is None:
                return None
            marker, logits, cache = self._prefill(batch, shared)
            if cache.get_seq_length() != length:
                return None
            cache = in_place(cache, rows, length + sampling.max_new_tokens)
            model = hosts.module_of(self.av)
            stops = None if watch is None else self._watched(watch, sampling)
            logits = logits[rows.to(logits.device)]
            done = decode(model, logits, cache, stops=stops, **settings)
        receipts = self.receipts(marker, batch)
        return (
            (row, self._reply(ids, receipts[int(rows[row])], end=end, sampling=sampling))
            for row, ids, end in done
        )

    def _watched(self, watch: Watch, sampling: Sampling) -> Callable[[int, list[int]], bool]:
        """Return what `decode` calls after each step."""

        def stops(row: int, ids: list[int]) -> bool:
            so_far = ids.copy()
            return watch(row, lambda: self._partial(so_far, sampling))

        return stops

    def _partial(self, ids: list[int], sampling: Sampling) -> str:
        raw = self.tokenizer.decode(ids, skip_special_tokens=True)
        tagged = not self.checkpoint.asks
        return partial_text(raw, opened=self.prompt.opened, tagged=tagged, upto=sampling.upto)

    def _prefill(self, batch: Batch, start: int) -> tuple[Tensor, Tensor, Any]:
        """Run the prompts with their vectors, their first `start` tokens once.

        Returns:
            Residuals of the markers, logits, cache.
        """
        model = cast("Any", hosts.module_of(self.av))
        injection, site = self.checkpoint.injection, self.site
        ids, rest = batch.ids[:1], batch.ids[:, start:].contiguous()
        vectors, written, sites = batch.vectors, batch.written - start, batch.sites - start
        rows = torch.arange(len(batch), device="cpu")[:, None]
        options = {"use_cache": True, **hosts.only_last(self.av)}
        cache = DynamicCache(config=hosts.text_config(self.av))
        with torch.no_grad():
            if start:
                model(input_ids=ids[:, :start].to(model.device), past_key_values=cache, **options)
                repeat(cache, len(batch))
            with (
                contiguous_head(self.av),
                self.av.trace(rest, past_key_values=cache, **options),
            ):
                before = site.output
                after = write_slots(before, vectors, written, injection)
                site.output = after
                marker = torch.stack([before[rows, sites], after[rows, sites]])
                marker = nnsight.save(marker.float().cpu())
                logits = nnsight.save(self.av.output.logits[:, -1])
        return marker, logits, cache

    def _shared(self, batch: Batch) -> int | None:
        """Return how many tokens are run once for all rows: those before the first marker.

        A model that starts several tokens from nothing, rather than from its states, runs the
        prompt for each vector: 0. One that does so with every token cannot be decoded: ``None``.
        """
        model, config = hosts.module_of(self.av), hosts.text_config(self.av)
        start = batch.shared
        if not keeps_states(config):
            return start
        ids = batch.ids[:1].to(cast("Any", model).device)
        # Of questions that share nothing, the model is tried on one all the same.
        found = reach(model, config, ids, start or ids.shape[1] // 2)
        return None if found == "none" else start if found == "several" else 0

    def _request(
        self, batch: Batch, rows: Tensor, settings: dict[str, Any]
    ) -> tuple[bool, Tensor, list[tuple[int, list[int], int | None]]]:
        """Run prefix, prefill and decoding in one request; the cache never leaves the host.

        The block is shipped as source, so it does not name `self`. If the host runs blocks in a
        separate process, the model fills another copy of the cache; then nothing is decoded.
        """
        av, injection, site = self.av, self.checkpoint.injection, self.site
        start, length, count = batch.shared, batch.ids.shape[1], len(batch)
        prefix, rest = batch.ids[:1, :start].clone(), batch.ids[:, start:].clone()
        vectors = batch.vectors.contiguous().clone()
        written, sites = batch.written - start, batch.sites - start
        at = torch.arange(count, device="cpu")[:, None]
        options = {"use_cache": True, **hosts.only_last(av)}
        cache = DynamicCache(config=hosts.text_config(av))
        with av.trace(rest, past_key_values=cache, **options, remote=True):
            if start:
                with torch.no_grad():
                    av(input_ids=prefix.to(av.device), past_key_values=cache, **options)
                cache.batch_repeat_interleave(count)
            before = site.output
            after = write_slots(before, vectors, written, injection)
            site.output = after
            marker = torch.stack([before[at, sites], after[at, sites]])
            marker = nnsight.save(marker.float().cpu())
            logits = av.output.logits[:, -1]
            filled = nnsight.save([cache.get_seq_length() == length])
            done = nnsight.save([])
            if filled[0]:
                rows = rows.to(logits.device)
                cache.batch_select_indices(rows)
                done.extend(decode(av, logits[rows], cache, **settings))
        return filled[0], marker, done

    def _plain(
        self, batch: Batch, seeds: list[int], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """Run the reference engine: nnsight's ``generate`` on the full prompt of every row."""
        closed, start = self._ending(sampling), batch.ids.shape[1]
        settings: dict[str, Any] = {"logits_processor": sampling.processors(seeds)}
        config = greedy(self.av, self.tokenizer, sampling.max_new_tokens)
        settings["generation_config"] = config
        if self.runtime.remote:
            # Only classes that a host has: its processes hand these from one to another.
            if self._closing is not None:
                config.stop_strings, settings["tokenizer"] = [self._closing], self.tokenizer
            what = f"The request to verbalize {len(batch)} vectors with {self.runtime.name}"
            sequences, marker = send(
                lambda: self._generate(batch, {**settings, "remote": True}), what
            )
        else:
            settings["stopping_criteria"] = [ClosedRows(closed, start)]
            with contiguous_head(self.av):
                sequences, marker = self._generate(batch, settings)
        receipts = self.receipts(marker, batch)
        for row, ids in enumerate(sequences[:, start:].tolist()):
            # A row that is finished before the others goes on with pad tokens.
            yield row, self.reply(ids, receipts[row], sampling)

    def _generate(self, batch: Batch, settings: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Generate one batch; return sequences, and the markers' residuals before and after.

        In a remote run the block is shipped as source, so it does not name `self`.
        """
        injection, site, ids = self.checkpoint.injection, self.site, batch.ids.clone()
        vectors, written, sites = batch.vectors.contiguous().clone(), batch.written, batch.sites
        rows = torch.arange(len(ids), device="cpu")[:, None]
        with self.av.generate(ids, **settings) as tracer:
            before = site.output
            after = write_slots(before, vectors, written, injection)
            site.output = after
            marker = torch.stack([before[rows, sites], after[rows, sites]])
            marker = nnsight.save(marker.float().cpu())
            sequences = nnsight.save(tracer.result.cpu())
        return sequences, marker

    @property
    def _closing(self) -> str | None:
        """The text that ends a reply; ``None`` for an oracle, whose answers have no tags."""
        return None if self.checkpoint.asks else CLOSE

    def receipts(self, marker: Tensor, batch: Batch) -> list[tuple[float, float, float]]:
        """Return each row's norms before and after writing, and the cosine with its vector.

        The norms are those at the first slot; the cosine is the least of all slots.

        Args:
            marker: The residuals at the slots before and after, ``[2, rows, slots, d_model]``.
            batch: The rows.
        """
        before, after = marker
        added = after if self.checkpoint.injection.operation == "replace" else after - before
        least = cosine(added, batch.vectors).min(dim=-1).values
        angles = torch.where(batch.given, least, torch.nan)
        lengths = before[:, 0].norm(dim=-1), after[:, 0].norm(dim=-1)
        return list(zip(*(each.tolist() for each in (*lengths, angles)), strict=True))

    def reply(
        self, ids: list[int], receipt: tuple[float, float, float], sampling: Sampling
    ) -> Reply:
        """Return the reply in generated ids, up to its closing tag or its end.

        Args:
            ids: The tokens after the prompt; those after the reply's end are dropped.
            receipt: The norms before and after writing, and the cosine with the vector.
            sampling: Says where the explanation ends.
        """
        ends, closed = reply_ends(self.av, self.tokenizer), self._ending(sampling)
        stop = next(
            (n for n, token in enumerate(ids) if token in ends or (n and closed(ids[:n]))),
            len(ids),
        )
        end = ids[stop] if stop < len(ids) and ids[stop] in ends else None
        return self._reply(ids[:stop], receipt, end=end, sampling=sampling)

    def _ending(self, sampling: Sampling) -> Closing:
        opened, upto = self.prompt.opened, sampling.upto
        return Closing(self.tokenizer, self._closing, opening=OPEN, opened=opened, upto=upto)

    def _reply(
        self,
        ids: list[int],
        receipt: tuple[float, float, float],
        *,
        end: int | None,
        sampling: Sampling,
    ) -> Reply:
        raw = self.tokenizer.decode(ids, skip_special_tokens=True)
        drawn = array("i", ids if end is None else [*ids, end])
        upto = sampling.upto
        cut = upto is not None and (end is not None or self._ending(sampling).is_cut(ids))
        if self.checkpoint.asks:
            text = first_line(raw.strip()) if upto == "line" else raw.strip()
            finish = "cut" if cut else "length" if end is None else "eos"
            return Reply(raw, text, finish, len(ids), *receipt, ids=drawn, tagged=False)
        opened = self.prompt.opened
        text, closed = extract(complete(raw, opened))
        finish = "tag" if closed else "length" if end is None else "eos"
        if cut and not closed:  # An end-of-sequence token ends a line, too.
            finish = "cut"
        if upto == "line":
            text = first_line(text)
        return Reply(raw, text, finish, len(ids), *receipt, opened, drawn)
