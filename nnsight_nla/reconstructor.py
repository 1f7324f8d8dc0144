"""The activation reconstructor (AR) as an nnsight graph: read the last block at the last token.

An AR is the first K + 1 blocks of the base model. The text goes into its template, the residual at
the output of its last block is read at the last token (no final norm), and a linear head maps it to
the vector. nnsight pads on the left, so the last token is at ``-1`` in every row::

    with ar.trace(prompts) as tracer:
        last = block.output[:, -1].save()
        tracer.stop()
    vectors = last @ head.T
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import hosts
from .checkpoint import EXPLANATION_SLOT, Checkpoint
from .errors import CheckpointError, VerbalizationError

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel

HEAD = "value_head.safetensors"


class Reconstructor:
    """An AR, its template and its head."""

    def __init__(
        self, ar: TransformersModel, checkpoint: Checkpoint, head: Float[Tensor, "d_model d_model"]
    ) -> None:
        """Check that `ar` fits `checkpoint`; loads no weights.

        Raises:
            CheckpointError: Another width, another number of blocks, or no template.
        """
        if checkpoint.ar_template is None:
            raise CheckpointError(
                "The checkpoint says nothing about the reconstructor's prompt. Give it: "
                "NLA(..., checkpoint=Checkpoint(..., ar_template='... {explanation} ...'))."
            )
        config, name = hosts.text_config(ar), hosts.describe(ar)
        if config.num_hidden_layers != checkpoint.layer + 1:
            raise CheckpointError(
                f"{name} has {config.num_hidden_layers} blocks; a reconstructor of layer "
                f"{checkpoint.layer} has {checkpoint.layer + 1}."
            )
        d_model = checkpoint.d_model
        if config.hidden_size != d_model or tuple(head.shape) != (d_model, d_model):
            raise CheckpointError(
                f"{name} has width {config.hidden_size} and a head of shape {tuple(head.shape)}; "
                f"the checkpoint says d_model {d_model}."
            )
        self.ar = ar
        self.template = checkpoint.ar_template
        self._head = head.float()
        self._last = checkpoint.layer

    def reconstruct(self, texts: list[str], batch_size: int = 64) -> Float[Tensor, "texts d_model"]:
        """Turn each text back into a vector.

        Args:
            texts: Explanations, without tags.
            batch_size: Texts per forward pass.

        Returns:
            One vector per text, float32 on the CPU; its direction counts, not its length.

        Raises:
            VerbalizationError: A text is empty.
        """
        for number, text in enumerate(texts):
            if not text.strip():
                raise VerbalizationError(
                    f"text {number} is empty; there is nothing to reconstruct."
                )
        parts = [torch.empty(0, len(self._head))]
        for start in range(0, len(texts), batch_size):
            chunk = texts[start : start + batch_size]
            parts.append(self._forward([self.template.replace(EXPLANATION_SLOT, t) for t in chunk]))
        return torch.cat(parts)

    def _forward(self, prompts: list[str]) -> Tensor:
        block = hosts.block(self.ar, self._last)
        with torch.no_grad(), self.ar.trace(prompts) as tracer:
            last = block.output[:, -1].float().cpu().save()
            tracer.stop()
        return last @ self._head.T


def load_head(folder: Path) -> Float[Tensor, "d_model d_model"]:
    """Read the head that lies beside a truncated model.

    Raises:
        CheckpointError: There is none, or it is not one matrix named ``weight``.
    """
    from safetensors.torch import load_file

    file = folder / HEAD
    if not file.is_file():
        raise CheckpointError(f"{folder} has no {HEAD}; a reconstructor's folder has one.")
    tensors = load_file(file)
    if list(tensors) != ["weight"] or tensors["weight"].ndim != 2:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise CheckpointError(f"{file} holds {found or 'nothing'}; expected one matrix, 'weight'.")
    return tensors["weight"]
