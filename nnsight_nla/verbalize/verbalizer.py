"""Run the activation verbalizer (AV): write vectors at the injection site and generate.

One call runs one batch. The prompt is the same in every row. Row i's vector is written at the
marker, into the injection site's output, during the prefill (a plain read inside nnsight's
``generate`` sees the prefill); the rest is ordinary generation::

    with av.generate(ids, ...) as tracer:
        before = site.output
        site.output = write(before, vectors, marker_positions, injection)
        sequences = tracer.result.save()
"""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterator
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
from ..core.injection import write
from ..core.sampling import Sampling, draw_seed
from ..core.similarity import cosine
from ..errors import CheckpointError, InjectionError, VerbalizationError
from ..explanation.records import Reply
from ..models import hosts
from ..models.generation import greedy, reply_ends
from ..models.head import contiguous_head
from ..models.packing import packed
from ..remote.ndif import send
from .cache import in_place
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

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from nnsight import TransformersModel

    from ..models.runtime import Runtime


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

    def use(self) -> AbstractContextManager[Any]:
        """Make ready to verbalize; see `Runtime.use`."""
        return self.runtime.use()

    def unload(self) -> None:
        """Do nothing: the weights are the runtime's."""

    def check_fits(self, sampling: Sampling) -> None:
        """Check that the longest reply fits after the prompt.

        Raises:
            VerbalizationError: It does not fit in the context.
        """
        start = len(self.prompt.ids)
        if start + sampling.max_new_tokens > self.context:
            raise VerbalizationError(
                f"max_new_tokens={sampling.max_new_tokens} after a prompt of {start} tokens "
                f"exceeds the verbalizer's context of {self.context}. "
                f"Use Sampling(max_new_tokens={self.context - start}) or less."
            )

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
    ) -> Iterator[tuple[int, Reply]]:
        """Write one vector per row and generate, in one batch. Call it inside ``runtime.use()``.

        Args:
            vectors: The unscaled vectors; a row that is not `given` may have any values.
            given: Which rows get their vector; the others are the null control.
            samples: The sample number of each row.
            sampling: How tokens are chosen.

        Yields:
            A row's number and its `Reply`, in the order in which rows finish.

        Raises:
            VerbalizationError: The reply does not fit in the context.
        """
        self.check_fits(sampling)
        seeds = (
            []
            if sampling.greedy
            else [
                draw_seed(sampling.seed, vector, sample)
                for vector, sample in zip(vectors, samples, strict=True)
            ]
        )
        if self.why_plain is None:
            with self.packed(len(vectors)):
                replies = self._fast(vectors, given, seeds, sampling)
                if replies is not None:
                    yield from replies
                    return
        rows = len(vectors)
        # A state that is no cache of transformers' (RWKV) is not kept apart by row.
        size = 1 if hosts.keeps_state(self.av) else rows
        for start in range(0, rows, size):
            part = slice(start, start + size)
            one = self._plain(vectors[part], given[part], seeds[part], sampling)
            yield from ((start + row, reply) for row, reply in one)

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
        self, vectors: Tensor, given: Tensor, seeds: list[int], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]] | None:
        """Compute the prefix once, prefill each distinct vector once, and decode.

        Returns:
            The replies; ``None`` if the host keeps the cache in another process, or the model
            does not fill the cache or does not continue from it.
        """
        different = _different(vectors, given)
        prefilled = list(dict.fromkeys(different))
        rows = torch.tensor([prefilled.index(each) for each in different], device="cpu")
        vectors, given = vectors.float().cpu()[prefilled], given.cpu()[prefilled]
        settings = {
            "processors": sampling.processors(seeds),
            "closed": self._ending(sampling),
            "ends": reply_ends(self.av, self.tokenizer),
            "limit": sampling.max_new_tokens,
        }
        if self.runtime.remote:
            what = f"The request to verbalize {len(rows)} vectors with {self.runtime.name}"
            filled, marker, done = send(lambda: self._request(vectors, given, rows, settings), what)
            if not filled:
                _SEPARATE.add(self.av)
                return None
        else:
            shared = self._shared()
            if shared is None:
                return None
            marker, logits, cache = self._prefill(vectors, given, shared)
            if cache.get_seq_length() != len(self.prompt.ids):
                return None
            cache = in_place(cache, rows, len(self.prompt.ids) + sampling.max_new_tokens)
            model = hosts.module_of(self.av)
            done = decode(model, logits[rows.to(logits.device)], cache, **settings)
        receipts = self._receipts(marker, vectors, given)
        return (
            (row, self._reply(ids, receipts[int(rows[row])], end=end, sampling=sampling))
            for row, ids, end in done
        )

    def _prefill(self, vectors: Tensor, given: Tensor, start: int) -> tuple[Tensor, Tensor, Any]:
        """Run the prompt with a vector in each row, its first `start` tokens once.

        Returns:
            Residuals of the marker, logits, cache.
        """
        model, ids = (
            cast("Any", hosts.module_of(self.av)),
            torch.tensor([self.prompt.ids], device="cpu"),
        )
        sites = self.prompt.sites
        injection, site = self.checkpoint.injection, self.site
        rest = ids[:, start:].expand(len(vectors), -1).contiguous()
        options = {"use_cache": True, **hosts.only_last(self.av)}
        cache = DynamicCache(config=hosts.text_config(self.av))
        with torch.no_grad():
            if start:
                model(input_ids=ids[:, :start].to(model.device), past_key_values=cache, **options)
                repeat(cache, len(vectors))
            with (
                contiguous_head(self.av),
                self.av.trace(rest, past_key_values=cache, **options),
            ):
                before = site.output
                after = write(before, vectors, [each - start for each in sites], injection, given)
                site.output = after
                at = sites[0] - start
                marker = nnsight.save(torch.stack([before[:, at], after[:, at]]).float().cpu())
                logits = nnsight.save(self.av.output.logits[:, -1])
        return marker, logits, cache

    def _shared(self) -> int | None:
        """Return how many tokens of the prompt are run once for all rows: those before the marker.

        A model that starts several tokens from nothing, rather than from its states, runs the
        prompt for each vector: 0. One that does so with every token cannot be decoded: ``None``.
        """
        model, config = hosts.module_of(self.av), hosts.text_config(self.av)
        start = self.prompt.sites[0]
        if not keeps_states(config):
            return start
        ids = torch.tensor([self.prompt.ids], device=cast("Any", model).device)
        found = reach(model, config, ids, start)
        return None if found == "none" else start if found == "several" else 0

    def _request(
        self, vectors: Tensor, given: Tensor, rows: Tensor, settings: dict[str, Any]
    ) -> tuple[bool, Tensor, list[tuple[int, list[int], int | None]]]:
        """Run prefix, prefill and decoding in one request; the cache never leaves the host.

        The block is shipped as source, so it does not name `self`. If the host runs blocks in a
        separate process, the model fills another copy of the cache; then nothing is decoded.
        """
        av, injection, site = self.av, self.checkpoint.injection, self.site
        ids, start = torch.tensor([self.prompt.ids], device="cpu"), self.prompt.sites[0]
        sites = [each - start for each in self.prompt.sites]
        prefix, vectors = ids[:, :start].clone(), vectors.clone()
        rest = ids[:, start:].expand(len(vectors), -1).contiguous()
        options = {"use_cache": True, **hosts.only_last(av)}
        cache = DynamicCache(config=hosts.text_config(av))
        length = ids.shape[1]
        with av.trace(rest, past_key_values=cache, **options, remote=True):
            if start:
                with torch.no_grad():
                    av(input_ids=prefix.to(av.device), past_key_values=cache, **options)
                cache.batch_repeat_interleave(len(vectors))
            before = site.output
            after = write(before, vectors, sites, injection, given)
            site.output = after
            marker = nnsight.save(torch.stack([before[:, 0], after[:, 0]]).float().cpu())
            logits = av.output.logits[:, -1]
            filled = nnsight.save([cache.get_seq_length() == length])
            done = nnsight.save([])
            if filled[0]:
                rows = rows.to(logits.device)
                cache.batch_select_indices(rows)
                done.extend(decode(av, logits[rows], cache, **settings))
        return filled[0], marker, done

    def _plain(
        self, vectors: Tensor, given: Tensor, seeds: list[int], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """Run the reference engine: nnsight's ``generate`` on the full prompt of every row."""
        closed, start = self._ending(sampling), len(self.prompt.ids)
        settings: dict[str, Any] = {"logits_processor": sampling.processors(seeds)}
        config = greedy(self.av, self.tokenizer, sampling.max_new_tokens)
        settings["generation_config"] = config
        if self.runtime.remote:
            # Only classes that a host has: its processes hand these from one to another.
            config.stop_strings, settings["tokenizer"] = [CLOSE], self.tokenizer
            what = f"The request to verbalize {len(vectors)} vectors with {self.runtime.name}"
            vectors = vectors.float().cpu().clone()
            sequences, marker = send(
                lambda: self._generate(vectors, given, {**settings, "remote": True}), what
            )
        else:
            settings["stopping_criteria"] = [ClosedRows(closed, start)]
            with contiguous_head(self.av):
                sequences, marker = self._generate(vectors, given, settings)
        receipts = self._receipts(marker, vectors.float().cpu(), given)
        for row, ids in enumerate(sequences[:, start:].tolist()):
            # A row that is finished before the others goes on with pad tokens.
            yield row, self.reply(ids, receipts[row], sampling)

    def _generate(
        self, vectors: Tensor, given: Tensor, settings: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Generate one batch; return sequences, and the marker's residual before and after.

        In a remote run the block is shipped as source, so it does not name `self`.
        """
        sites, injection, site = self.prompt.sites, self.checkpoint.injection, self.site
        position = sites[0]
        ids = torch.tensor([self.prompt.ids], device="cpu").expand(len(vectors), -1).contiguous()
        with self.av.generate(ids, **settings) as tracer:
            before = site.output
            after = write(before, vectors, sites, injection, given)
            site.output = after
            written = torch.stack([before[:, position], after[:, position]])
            marker = nnsight.save(written.float().cpu())
            sequences = nnsight.save(tracer.result.cpu())
        return sequences, marker

    def _receipts(
        self, marker: Tensor, vectors: Tensor, given: Tensor
    ) -> list[tuple[float, float, float]]:
        """Return each row's norms before and after writing, and the cosine with its vector."""
        before, after = marker
        added = after if self.checkpoint.injection.operation == "replace" else after - before
        angles = torch.where(given.cpu(), cosine(added, vectors), torch.nan)
        lengths = before.norm(dim=-1), after.norm(dim=-1)
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
        return Closing(self.tokenizer, CLOSE, opening=OPEN, opened=opened, upto=upto)

    def _reply(
        self,
        ids: list[int],
        receipt: tuple[float, float, float],
        *,
        end: int | None,
        sampling: Sampling,
    ) -> Reply:
        raw = self.tokenizer.decode(ids, skip_special_tokens=True)
        opened, upto = self.prompt.opened, sampling.upto
        text, closed = extract(complete(raw, opened))
        finish = "tag" if closed else "length" if end is None else "eos"
        if upto is not None and not closed:
            # An end-of-sequence token ends a line, too.
            finish = "cut" if end is not None or self._ending(sampling).is_cut(ids) else finish
        if upto == "line":
            text = first_line(text)
        drawn = array("i", ids if end is None else [*ids, end])
        return Reply(raw, text, finish, len(ids), *receipt, opened, drawn)


def _different(vectors: Tensor, given: Tensor) -> list[int]:
    """Return, for each row, the first row with equal bytes; null rows are all equal."""
    first: dict[bytes | None, int] = {}
    return [
        first.setdefault(row.numpy().tobytes() if has else None, index)
        for index, (row, has) in enumerate(
            zip(vectors.detach().float().cpu(), given.tolist(), strict=True)
        )
    ]
