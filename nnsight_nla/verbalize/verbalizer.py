"""The activation verbalizer (AV) as an nnsight graph: write at the injection site, generate.

One call runs one batch. The prompt is the same in every row; row i's vector is written at the
marker, at the injection site's output, in the prefill (a plain read inside nnsight's ``generate``
*is* the prefill), and the rest is ordinary generation::

    with av.generate(ids, ...) as tracer:
        before = site.output
        site.output = write(before, vectors, marker_positions, injection)
        sequences = tracer.result.save()
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.reply import CLOSE, extract
from ..core.injection import write
from ..core.sampling import Sampling, draw_seed
from ..core.similarity import cosine
from ..errors import CheckpointError, HostError, VerbalizationError
from ..explanation.records import Reply
from ..models import hosts
from ..models.memory import load_weights
from ..remote.ndif import send
from .decoding import (
    AT_A_HOST,
    Closing,
    Engine,
    check_engine,
    decode,
    in_place,
    rows_that_fit,
    unfit,
)
from .packing import packed

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from nnsight import TransformersModel
    from transformers import GenerationConfig


# Merged checkpoints ship a generation_config; none of it may steer a verbalizer.
_NEUTRAL: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
}

_APART = "nnsight_nla: the cache was not filled in this process"
# Verbalizers of which that was said; found out by the first request.
_SEPARATE: weakref.WeakSet[Any] = weakref.WeakSet()


class Verbalizer:
    """An AV, its prompt and its injection site."""

    def __init__(
        self,
        av: TransformersModel,
        checkpoint: Checkpoint,
        prompt: Prompt,
        *,
        remote: bool = False,
        engine: Engine = "fast",
    ) -> None:
        """Check that `av` fits `checkpoint`; loads no weights.

        Raises:
            CheckpointError: Another width, no such injection layer, or too short a context.
        """
        self.av = av
        self.remote = remote
        self.engine = check_engine(engine)
        self.checkpoint = checkpoint
        self.prompt = prompt
        config = hosts.text_config(av)
        name = hosts.describe(av)
        if config.hidden_size != checkpoint.d_model:
            raise CheckpointError(
                f"{name} has d_model {config.hidden_size}, its checkpoint says "
                f"{checkpoint.d_model}. Use the weights and the sidecar of one checkpoint."
            )
        layer, depth = checkpoint.injection.layer, config.num_hidden_layers
        if layer is not None and layer >= depth:
            raise CheckpointError(
                f"The vector is to be written at block {layer}, {name} has blocks 0 to {depth - 1}."
            )
        self.context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        if len(prompt.ids) >= self.context:
            raise CheckpointError(
                f"The verbalizer's prompt has {len(prompt.ids)} tokens, {name} reads "
                f"{self.context} at most. Shorten the template: "
                "NLA(..., checkpoint=Checkpoint(template=...))."
            )

    @property
    def site(self) -> Any:
        """The envoy whose output the vector is written into."""
        layer = self.checkpoint.injection.layer
        return hosts.embedding(self.av) if layer is None else hosts.block(self.av, layer)

    def verbalize(
        self,
        vectors: Float[Tensor, "rows d_model"],
        given: Bool[Tensor, " rows"],
        samples: list[int],
        sampling: Sampling,
    ) -> Iterator[tuple[int, Reply]]:
        """Write one vector per row and generate, in one batch.

        Args:
            vectors: The vectors, raw; a row that is not `given` may hold anything.
            given: Which rows get their vector; the others are the null control.
            samples: The sample number of each row.
            sampling: How tokens are chosen.

        Yields:
            A row's number and its `Reply`, once it is done; not in the order of the rows.

        Raises:
            VerbalizationError: The verbalizer is in use by a trace, or the reply cannot fit.
        """
        self._check_free()
        if not self.remote:
            load_weights(self.av)
        start = len(self.prompt.ids)
        if start + sampling.max_new_tokens > self.context:
            raise VerbalizationError(
                f"max_new_tokens={sampling.max_new_tokens} after a prompt of {start} tokens goes "
                f"past the verbalizer's context of {self.context}. "
                f"Use Sampling(max_new_tokens={self.context - start}) or less."
            )
        seeds = (
            []
            if sampling.greedy
            else [
                draw_seed(sampling.seed, vector, sample)
                for vector, sample in zip(vectors, samples, strict=True)
            ]
        )
        if self.why_plain is None:
            try:
                yield from self._fast(vectors, given, seeds, sampling)
                return
            except HostError as error:
                if _APART not in str(error.__cause__):
                    raise
            _SEPARATE.add(self.av)
        yield from self._plain(vectors, given, seeds, sampling)

    @property
    def why_plain(self) -> str | None:
        """Why batches take nnsight's own ``generate``, ``None`` where they are decoded fast."""
        if self.remote and self.av in _SEPARATE:
            return "the host runs blocks in a process apart from the model, and its cache"
        return "engine='generate' was asked for" if self.engine == "generate" else unfit(self.av)

    def rows_that_fit(self, new_tokens: int) -> int:
        """How many rows a batch should have, going by the memory that is free."""
        if self.remote:
            return AT_A_HOST
        prompt = len(self.prompt.ids)
        rest = prompt if self.why_plain else prompt - self.prompt.marker_position
        return rows_that_fit(self.av, prompt=prompt, rest=rest, new_tokens=new_tokens)

    def _fast(
        self, vectors: Tensor, given: Tensor, seeds: list[int], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """Prefill each different vector once, behind a prefix that is computed once; decode."""
        different = _different(vectors, given)
        prefilled = list(dict.fromkeys(different))
        rows = torch.tensor([prefilled.index(each) for each in different])
        vectors, given = vectors.float().cpu()[prefilled], given.cpu()[prefilled]
        start = len(self.prompt.ids)
        settings = {
            "processors": sampling.processors(seeds),
            "closed": Closing(self.av.tokenizer, CLOSE),
            "ends": self._ends(),
            "limit": sampling.max_new_tokens,
        }
        if self.remote:
            what = f"The request to verbalize {len(rows)} vectors with {hosts.describe(self.av)}"
            marker, done = send(lambda: self._request(vectors, given, rows, settings), what)
        else:
            marker, logits, cache = self._prefill(vectors, given)
            cache = in_place(cache, rows, start + sampling.max_new_tokens)
            done = decode(self.av._module, logits[rows.to(logits.device)], cache, **settings)
        receipts = self._receipts(marker, vectors, given)
        with nullcontext() if self.remote else packed(self.av._module, len(rows)):
            for row, ids, ended in done:
                yield row, self._reply(ids, receipts[int(rows[row])], ended=ended)

    def _prefill(self, vectors: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Run the prompt, a vector in each row: the marker's residual, last logits, cache."""
        model, ids, sites = self.av._module, torch.tensor([self.prompt.ids]), self.prompt.sites
        injection, site, start = self.checkpoint.injection, self.site, self.prompt.sites[0]
        rest = ids[:, start:].expand(len(vectors), -1).contiguous()
        options = {"use_cache": True, **_only_last(model)}
        cache = DynamicCache(config=hosts.text_config(self.av))
        with torch.no_grad():
            if start:
                model(input_ids=ids[:, :start].to(model.device), past_key_values=cache, **options)
                cache.batch_repeat_interleave(len(vectors))
            with self.av.trace(rest, past_key_values=cache, **options):
                before = site.output
                after = write(before, vectors, [each - start for each in sites], injection, given)
                site.output = after
                marker = torch.stack([before[:, 0], after[:, 0]]).float().cpu().save()
                logits = self.av.output.logits[:, -1].save()
        return marker, logits, cache

    def _request(
        self, vectors: Tensor, given: Tensor, rows: Tensor, settings: dict[str, Any]
    ) -> tuple[Tensor, list[tuple[int, list[int], bool]]]:
        """Prefix, prefill and decoding in one request; the cache lives and dies on the host.

        The block is shipped as it stands, so it names nothing of `self`.
        """
        av, injection, site = self.av, self.checkpoint.injection, self.site
        ids, start = torch.tensor([self.prompt.ids]), self.prompt.sites[0]
        sites = [each - start for each in self.prompt.sites]
        prefix, vectors = ids[:, :start].clone(), vectors.clone()
        rest = ids[:, start:].expand(len(vectors), -1).contiguous()
        options = {"use_cache": True, **_only_last(av._module)}
        cache = DynamicCache(config=hosts.text_config(av))
        length, apart = ids.shape[1], _APART
        with av.trace(rest, past_key_values=cache, **options, remote=True):
            if start:
                with torch.no_grad():
                    av(input_ids=prefix.to(av.device), past_key_values=cache, **options)
                cache.batch_repeat_interleave(len(vectors))
            before = site.output
            after = write(before, vectors, sites, injection, given)
            site.output = after
            marker = torch.stack([before[:, 0], after[:, 0]]).float().cpu().save()
            logits = av.output.logits[:, -1]
            # A sandboxed block runs in a process of its own, and the model fills another's cache.
            if cache.get_seq_length() != length:
                raise RuntimeError(apart)
            rows = rows.to(logits.device)
            cache.batch_select_indices(rows)
            done = list(decode(av, logits[rows], cache, **settings)).save()
        return marker, done

    def _plain(
        self, vectors: Tensor, given: Tensor, seeds: list[int], sampling: Sampling
    ) -> Iterator[tuple[int, Reply]]:
        """The reference: nnsight's ``generate`` on the whole prompt of every row."""
        settings = {
            "generation_config": self._generation_config(sampling),
            "logits_processor": sampling.processors(seeds),
            "tokenizer": self.av.tokenizer,
        }
        if self.remote:
            what = f"The request to verbalize {len(vectors)} vectors with {hosts.describe(self.av)}"
            vectors = vectors.float().cpu().clone()
            sequences, marker = send(
                lambda: self._generate(vectors, given, {**settings, "remote": True}), what
            )
        else:
            sequences, marker = self._generate(vectors, given, settings)
        ends = {*self._ends(), settings["generation_config"].pad_token_id}
        closed = Closing(self.av.tokenizer, CLOSE)
        receipts = self._receipts(marker, vectors.float().cpu(), given)
        for row, ids in enumerate(sequences[:, len(self.prompt.ids) :].tolist()):
            # Its stop strings are not found in every tokenizer's vocabulary: it may have gone on.
            stop = next(
                (n for n, token in enumerate(ids) if token in ends or (n and closed(ids[:n]))),
                len(ids),
            )
            ended = stop < len(ids) and ids[stop] in ends
            yield row, self._reply(ids[:stop], receipts[row], ended=ended)

    def _generate(
        self, vectors: Tensor, given: Tensor, settings: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """One batch through the graph: the sequences, and the marker's residual before and after.

        The block is shipped as it stands where it runs remotely, so it names nothing of `self`.
        """
        sites, injection, site = self.prompt.sites, self.checkpoint.injection, self.site
        position = sites[0]
        ids = torch.tensor([self.prompt.ids]).expand(len(vectors), -1).contiguous()
        with self.av.generate(ids, **settings) as tracer:
            before = site.output
            after = write(before, vectors, sites, injection, given)
            site.output = after
            marker = torch.stack([before[:, position], after[:, position]]).float().cpu().save()
            sequences = tracer.result.cpu().save()
        return sequences, marker

    def _check_free(self) -> None:
        if self.av.interleaver.interleaving:
            raise VerbalizationError(
                "A trace is running on the verbalizer itself, and nnsight runs one trace per model "
                "at a time. Read the text after the `with` block (the vector is kept until then), "
                "or use a verbalizer that is a model of its own: NLA('path or id')."
            )

    def _ends(self) -> list[int]:
        """The ids that end a reply: the tokenizer's and those of the checkpoint's own settings."""
        listed = self.av._module.generation_config.eos_token_id
        ends = listed if isinstance(listed, list) else [listed]
        return sorted({*ends, self.av.tokenizer.eos_token_id} - {None})

    def _generation_config(self, sampling: Sampling) -> GenerationConfig:
        """The settings of one run; what the checkpoint's own would leak is put back to neutral."""
        from transformers import GenerationConfig

        own = self.av._module.generation_config
        leaks = {
            name: neutral
            for name, neutral in _NEUTRAL.items()
            if getattr(own, name, None) not in (None, neutral)
        }
        ends = self._ends()
        pad = self.av.tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            stop_strings=[CLOSE],
            eos_token_id=ends or None,
            pad_token_id=pad if pad is not None else (ends or [0])[0],
            **leaks,
        )

    def _receipts(
        self, marker: Tensor, vectors: Tensor, given: Tensor
    ) -> list[tuple[float, float, float]]:
        """Of each row: the residual's norm before and after writing, and the cosine of the two."""
        before, after = marker
        added = after if self.checkpoint.injection.operation == "replace" else after - before
        angles = torch.where(given.cpu(), cosine(added, vectors), torch.nan)
        lengths = before.norm(dim=-1), after.norm(dim=-1)
        return list(zip(*(each.tolist() for each in (*lengths, angles)), strict=True))

    def _reply(self, ids: list[int], receipt: tuple[float, float, float], *, ended: bool) -> Reply:
        raw = self.av.tokenizer.decode(ids, skip_special_tokens=True)
        text, closed = extract(raw)
        finish = "tag" if closed else "eos" if ended else "length"
        return Reply(raw, text, finish, len(ids), *receipt)


def _different(vectors: Tensor, given: Tensor) -> list[int]:
    """Of each row, the first that has the same bytes; rows without a vector are all the same."""
    first: dict[bytes | None, int] = {}
    return [
        first.setdefault(row.numpy().tobytes() if has else None, place)
        for place, (row, has) in enumerate(
            zip(vectors.detach().float().cpu(), given.tolist(), strict=True)
        )
    ]


def _only_last(model: Any) -> dict[str, int]:
    """The option that spares a prefill the logits of all tokens but the last, where it is known."""
    known = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {"logits_to_keep": 1} if known else {}
