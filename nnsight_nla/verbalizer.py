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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import hosts
from .capture import Reply
from .checkpoint import Checkpoint
from .errors import CheckpointError, VerbalizationError
from .injection import write
from .ndif import send
from .placement import load_weights
from .prompting import CLOSE, Prompt, extract
from .sampling import Sampling, draw_seed
from .scoring import cosine

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


class Verbalizer:
    """An AV, its prompt and its injection site."""

    def __init__(
        self,
        av: TransformersModel,
        checkpoint: Checkpoint,
        prompt: Prompt,
        *,
        remote: bool = False,
    ) -> None:
        """Check that `av` fits `checkpoint`; loads no weights.

        Raises:
            CheckpointError: Another width, no such injection layer, or too short a context.
        """
        self.av = av
        self.remote = remote
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
    ) -> list[Reply]:
        """Write one vector per row and generate, in one batch.

        Args:
            vectors: The vectors, raw; a row that is not `given` may hold anything.
            given: Which rows get their vector; the others are the null control.
            samples: The sample number of each row.
            sampling: How tokens are chosen.

        Returns:
            One `Reply` per row.

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
        return self._replies(sequences[:, start:], marker, vectors.float().cpu(), given)

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

    def _replies(
        self, tokens: Tensor, marker: Tensor, vectors: Tensor, given: Tensor
    ) -> list[Reply]:
        ends = {*self._ends(), self._generation_config(Sampling()).pad_token_id}
        before, after = marker
        added = after if self.checkpoint.injection.operation == "replace" else after - before
        angles = torch.where(given.cpu(), cosine(added, vectors), torch.nan)
        replies: list[Reply] = []
        for row, ids in enumerate(tokens.tolist()):
            stop = next((i for i, token in enumerate(ids) if token in ends), len(ids))
            raw = self.av.tokenizer.decode(ids[:stop], skip_special_tokens=True)
            text, closed = extract(raw)
            finish = "tag" if closed else "eos" if stop < len(ids) else "length"
            replies.append(
                Reply(
                    raw,
                    text,
                    finish,
                    stop,
                    before[row].norm().item(),
                    after[row].norm().item(),
                    angles[row].item(),
                )
            )
        return replies
