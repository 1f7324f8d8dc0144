"""The activation reconstructor (AR) as an nnsight graph: read the last block at the last token.

An AR consists of the first K + 1 blocks of the base model. The text is put into the AR's template,
the residual at the output of block K is read at the last token (without the final norm), and a
linear head maps it to the vector. nnsight pads on the left, so the last token is at ``-1`` in every
row::

    with ar.trace(prompts) as tracer:
        last = block.output[:, -1].save()
        tracer.stop()
    vectors = last @ head.T

The head always stays on this machine. A remote run reads the same residual on the host, and does
not run the blocks above K, even if the host has them.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import _compat
from ..checkpoint.checkpoint import EXPLANATION_SLOT, Checkpoint
from ..checkpoint.reply import CLOSE, OPEN
from ..errors import CheckpointError, InjectionError, ReconstructionError, TextError
from ..models import hosts
from ..models.packing import packed
from ..models.reconstructor_files import is_partial
from ..remote.ndif import send

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight.modeling.transformers import TransformersModel

    from ..models.open import OpenedReconstructor

# A tokenizer may merge the character after the slot with the end of the text.
_ENDINGS = ("word", "word.", 'word"')
_TO_PACK = 8
"""Texts in a batch from which packed weights gain time."""
_TOKENS = 32
"""About the number of tokens in a text, for the layout of packed weights."""


class Reconstructor:
    """An AR, its template and its head."""

    def __init__(self, opened: OpenedReconstructor, checkpoint: Checkpoint) -> None:
        """Check that the model fits `checkpoint`; loads no weights.

        Args:
            opened: The AR's runtime, its tokenizer, and how it is stored.
            checkpoint: The verbalizer's checkpoint.

        Raises:
            CheckpointError: The AR has another width, too few blocks or no template, or its prompt
                does not end as the sidecar says.
        """
        runtime, layout = opened.runtime, opened.layout
        template = layout.template or checkpoint.ar_template
        if template is None:
            raise CheckpointError(
                "The checkpoint has no prompt template for the reconstructor. Pass it: "
                "NLA(..., checkpoint=Checkpoint(..., ar_template='... {explanation} ...'))."
            )
        config, name = hosts.text_config(runtime.model), runtime.name
        if config.num_hidden_layers < checkpoint.layer + 1:
            raise CheckpointError(
                f"{name} has {config.num_hidden_layers} blocks; a reconstructor of layer "
                f"{checkpoint.layer} has {checkpoint.layer + 1}."
            )
        d_model = checkpoint.d_model
        if config.hidden_size != d_model or tuple(layout.head.shape) != (d_model, d_model):
            raise CheckpointError(
                f"{name} has width {config.hidden_size} and a head of shape "
                f"{tuple(layout.head.shape)}; the checkpoint says d_model {d_model}."
            )
        if runtime.remote and layout.adapter is not None and not layout.travels:
            raise CheckpointError(
                f"{name} is an adapter stored as ar_meta.json on this machine, where no host can "
                "read it. Store it as a PEFT adapter, or run it here: NLA(..., remote=False)."
            )
        if layout.final_norm and config.num_hidden_layers > checkpoint.layer + 1:
            raise CheckpointError(
                f"{name} was trained with the final norm after block {checkpoint.layer}, but this "
                f"model has {config.num_hidden_layers} blocks. Pass its path instead of the model, "
                "so that it is loaded without the other blocks."
            )
        self.runtime = runtime
        self.template = template
        self._tokenizer = opened.tokenizer
        self.head = layout.head
        """The matrix after the last block, float32 on the CPU."""
        self._layout = layout  # Also keeps the folder that an adapter's weights are read from.
        self._context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self._last = checkpoint.layer
        self._final_norm = layout.final_norm
        try:
            hosts.block(self.ar, self._last)  # It finds the block and checks it.
        except InjectionError as error:
            raise CheckpointError(str(error)) from error
        _check_suffix(
            self._tokenizer, template, layout.suffix_ids or checkpoint.ar_suffix_ids, name
        )

    @property
    def ar(self) -> TransformersModel:
        """The AR's nnsight model."""
        return self.runtime.model

    @property
    def d_model(self) -> int:
        """The width of a vector."""
        return len(self.head)

    def reconstruct(self, texts: list[str], batch_size: int = 64) -> Float[Tensor, "texts d_model"]:
        """Turn each text back into a vector.

        Args:
            texts: Explanations, without tags.
            batch_size: Texts per forward pass.

        Returns:
            One vector per text, float32 on the CPU; only its direction is meaningful.

        Raises:
            TextError: A text is empty, still has its tags, or is too long, or its reconstruction is
                not finite.
            ReconstructionError: A trace is running on the reconstructor.
            HostError: The host of a remote run did not answer.
        """
        prompts = [self._prompt(number, text) for number, text in enumerate(texts)]
        if not prompts:
            return torch.empty(0, len(self.head), dtype=torch.float32, device="cpu")
        parts: list[Tensor] = []
        with self.runtime.use(), self._packed(min(len(prompts), batch_size)):
            for start in range(0, len(prompts), batch_size):
                parts.append(self._forward(prompts[start : start + batch_size]) @ self.head.T)
        vectors = torch.cat(parts)
        bad = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
        if bad:
            raise TextError(
                f"The reconstruction of text {bad[0]} is not finite ({len(bad)} of {len(texts)} "
                f"such): {self.runtime.name} overflows in its dtype. Load it in a wider one: "
                "NLA(..., dtype='bfloat16') or 'float32'."
            )
        return vectors

    def _prompt(self, number: int, text: str) -> str:
        if not text.strip():
            raise TextError(f"text {number} is empty; expected an explanation.")
        if OPEN in text or CLOSE in text:
            raise TextError(
                f"text {number} still has its tags: {text[:60]!r}. Pass the explanation without "
                "them: nla.reconstruct(thought.text), not thought.raw."
            )
        return self._fill(number, text)

    def _fill(self, number: int, text: str) -> str:
        prompt = self.template.replace(EXPLANATION_SLOT, text)
        length = len(self._tokenizer(prompt)["input_ids"])
        if length > self._context:
            raise TextError(
                f"text {number} is {length} tokens with its template, the reconstructor reads "
                f"{self._context}. Shorten it: Sampling(max_new_tokens=...) limits the length of "
                "explanations."
            )
        return prompt

    def prior(self) -> Float[Tensor, " d_model"]:
        """Return the reconstruction of an empty text: the template with nothing in its slot."""
        with self.runtime.use():
            return (self._forward([self._fill(0, "")]) @ self.head.T)[0]

    def _packed(self, texts: int) -> AbstractContextManager[None]:
        """Multiply by packed weights meanwhile, where that repays the copy and loses no edit."""
        if self.runtime.remote or texts < _TO_PACK or _compat.has_edits(self.ar):
            return nullcontext()
        return packed(hosts.module_of(self.ar), texts * _TOKENS)

    def _forward(self, prompts: list[str]) -> Tensor:
        if len(prompts) > 1 and hosts.counts_left_padding(self.ar):
            return torch.cat([self._forward([each]) for each in prompts])
        if not self.runtime.remote:
            return self._read(prompts, {})
        self._check_adapter()
        what = f"The request to reconstruct {len(prompts)} texts with {self.runtime.name}"
        return send(lambda: self._read(prompts, {"remote": True}), what)

    def _check_adapter(self) -> None:
        """Refuse an adapter that has no matrices for some of the host's blocks."""
        adapter, blocks = self._layout.adapter, hosts.text_config(self.ar).num_hidden_layers
        if adapter is not None and is_partial(adapter, blocks):
            raise ReconstructionError(
                f"The host has all {blocks} blocks of {self.runtime.name}, but the adapter "
                f"{adapter} has matrices for fewer. If it was trained on the first "
                f"{self._last + 1} only, say so in its adapter_config.json: "
                f'"layers_to_transform": {list(range(self._last + 1))}; or run it here: '
                "NLA(..., remote=False)."
            )

    def _read(self, prompts: list[str], where: dict[str, Any]) -> Tensor:
        """Return the residual at every prompt's last token; this block is shipped as source."""
        block = hosts.block(self.ar, self._last)
        site = hosts.final_norm(self.ar) if self._final_norm else block
        with torch.no_grad(), self.ar.trace(prompts, **where) as tracer:
            last = site.output[:, -1].float().cpu().save()
            tracer.stop()
        return last


def _check_suffix(
    tokenizer: Any, template: str, expected: tuple[int, ...] | None, name: str
) -> None:
    """Check that prompts end in the ids that the sidecar declares, for several ends of the text."""
    if expected is None:
        return
    for ending in _ENDINGS:
        ids = tokenizer(template.replace(EXPLANATION_SLOT, ending))["input_ids"]
        if tuple(ids[-len(expected) :]) != tuple(expected):
            raise CheckpointError(
                f"The prompt of {name} ends in the ids {ids[-len(expected) :]} after {ending!r}, "
                f"its sidecar says {list(expected)}. Use the tokenizer and the template that ship "
                "with the checkpoint."
            )
