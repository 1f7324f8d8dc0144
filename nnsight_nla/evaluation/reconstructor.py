"""The activation reconstructor (AR) as an nnsight graph: read the last block at the last token.

An AR is the first K + 1 blocks of the base model. The text goes into its template, the residual at
the output of block K is read at the last token (no final norm), and a linear head maps it to the
vector. nnsight pads on the left, so the last token is at ``-1`` in every row::

    with ar.trace(prompts) as tracer:
        last = block.output[:, -1].save()
        tracer.stop()
    vectors = last @ head.T

The head never leaves this machine: a remote run reads the same residual on the host, where the
blocks above K, if the host has them, are never run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import EXPLANATION_SLOT, Checkpoint
from ..checkpoint.reply import CLOSE, OPEN
from ..errors import CheckpointError, ReconstructionError
from ..models import hosts
from ..models.reconstructor_files import is_partial
from ..remote.ndif import send

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel

    from ..models.reconstructor_files import Layout
    from ..models.runtime import Runtime

# A tokenizer may merge the template's first sign into whatever the text ends with.
_ENDINGS = ("word", "word.", 'word"')


class Reconstructor:
    """An AR, its template and its head."""

    def __init__(
        self,
        runtime: Runtime,
        checkpoint: Checkpoint,
        layout: Layout,
        tokenizer: Any,
    ) -> None:
        """Check that the model fits `checkpoint`; loads no weights.

        Args:
            runtime: Runs the AR.
            checkpoint: The verbalizer's.
            layout: How the AR is stored; keeps the folder that an adapter's weights are read from.
            tokenizer: The AR's.

        Raises:
            CheckpointError: Another width, too few blocks, no template, or a prompt that does not
                end as the sidecar says.
        """
        template = layout.template or checkpoint.ar_template
        if template is None:
            raise CheckpointError(
                "The checkpoint says nothing about the reconstructor's prompt. Give it: "
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
                f"{name}: an adapter stored as ar_meta.json is on this machine, where no host can "
                "read it. Store it as a PEFT adapter, or run it here: NLA(..., remote=False)."
            )
        if layout.final_norm and config.num_hidden_layers > checkpoint.layer + 1:
            raise CheckpointError(
                f"{name} was trained with the final norm after block {checkpoint.layer}, and has "
                f"{config.num_hidden_layers} blocks here. Pass its path, so that it is cut."
            )
        self.runtime = runtime
        self.template = template
        self._tokenizer = tokenizer
        self._head = layout.head
        self._layout = layout
        self._context = int(getattr(config, "max_position_embeddings", None) or 1 << 30)
        self._last = checkpoint.layer
        self._final_norm = layout.final_norm
        _check_suffix(tokenizer, template, layout.suffix_ids or checkpoint.ar_suffix_ids, name)

    @property
    def ar(self) -> TransformersModel:
        """The AR's nnsight model."""
        return self.runtime.model

    @property
    def d_model(self) -> int:
        """The width of a vector."""
        return len(self._head)

    def reconstruct(self, texts: list[str], batch_size: int = 64) -> Float[Tensor, "texts d_model"]:
        """Turn each text back into a vector.

        Args:
            texts: Explanations, without tags.
            batch_size: Texts per forward pass.

        Returns:
            One vector per text, float32 on the CPU; its direction counts, not its length.

        Raises:
            ReconstructionError: A text is empty, has its tags, or is too long; a trace is running
                on the reconstructor; or what comes out is not finite.
            HostError: The host of a remote run stayed away.
        """
        prompts = [self._prompt(number, text) for number, text in enumerate(texts)]
        if not prompts:
            return torch.empty(0, len(self._head))
        parts: list[Tensor] = []
        with self.runtime.use():
            for start in range(0, len(prompts), batch_size):
                parts.append(self._forward(prompts[start : start + batch_size]) @ self._head.T)
        vectors = torch.cat(parts)
        bad = (~torch.isfinite(vectors).all(dim=-1)).nonzero().flatten().tolist()
        if bad:
            raise ReconstructionError(
                f"The reconstruction of text {bad[0]} is not finite ({len(bad)} of {len(texts)} "
                f"such); {self.runtime.name} overflows in its dtype. Load it wider: "
                "NLA(..., dtype='bfloat16') or 'float32'."
            )
        return vectors

    def _prompt(self, number: int, text: str) -> str:
        if not text.strip():
            raise ReconstructionError(f"text {number} is empty; there is nothing to reconstruct.")
        if OPEN in text or CLOSE in text:
            raise ReconstructionError(
                f"text {number} still has its tags: {text[:60]!r}. Pass the explanation between "
                "them: nla.reconstruct(thought.text), not thought.raw."
            )
        return self._fill(number, text)

    def _fill(self, number: int, text: str) -> str:
        prompt = self.template.replace(EXPLANATION_SLOT, text)
        length = len(self._tokenizer(prompt)["input_ids"])
        if length > self._context:
            raise ReconstructionError(
                f"text {number} is {length} tokens with its template, the reconstructor reads "
                f"{self._context}. Shorten it: Sampling(max_new_tokens=...) bounds what the "
                "verbalizer writes."
            )
        return prompt

    def prior(self) -> Float[Tensor, " d_model"]:
        """Reconstruct the template with an empty slot: the vector of no text at all."""
        with self.runtime.use():
            return (self._forward([self._fill(0, "")]) @ self._head.T)[0]

    def _forward(self, prompts: list[str]) -> Tensor:
        if not self.runtime.remote:
            return self._read(prompts, {})
        self._check_adapter()
        what = f"The request to reconstruct {len(prompts)} texts with {self.runtime.name}"
        return send(lambda: self._read(prompts, {"remote": True}), what)

    def _check_adapter(self) -> None:
        """Refuse an adapter that a host would put on blocks that it has no matrices for."""
        adapter, blocks = self._layout.adapter, hosts.text_config(self.ar).num_hidden_layers
        if adapter is not None and is_partial(adapter, blocks):
            raise ReconstructionError(
                f"The host has all {blocks} blocks of {self.runtime.name}, and the adapter "
                f"{adapter} has matrices for fewer. If it was trained on the first "
                f"{self._last + 1} alone, say so in its adapter_config.json: "
                f'"layers_to_transform": {list(range(self._last + 1))}; or run it here: '
                "NLA(..., remote=False)."
            )

    def _read(self, prompts: list[str], where: dict[str, Any]) -> Tensor:
        """The residual at every prompt's last token; the block is shipped as it stands."""
        block = hosts.block(self.ar, self._last)
        site = hosts.final_norm(self.ar) if self._final_norm else block
        with torch.no_grad(), self.ar.trace(prompts, **where) as tracer:
            last = site.output[:, -1].float().cpu().save()
            tracer.stop()
        return last


def _check_suffix(
    tokenizer: Any, template: str, expected: tuple[int, ...] | None, name: str
) -> None:
    """Hold the end of a prompt against what the sidecar says it is, whatever the text ends with."""
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
