"""Train the reconstructor on the policy's own texts."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...checkpoint.checkpoint import EXPLANATION_SLOT
from ..reconstructor import Reconstructor, reconstruction_loss


def reconstruction_losses(
    reconstructor: Reconstructor,
    tokenizer: Any,
    template: str,
    texts: Sequence[str],
    vectors: Float[Tensor, "texts d_model"],
    batch_size: int,
) -> Generator[Float[Tensor, ""], None, None]:
    """Yield the loss of each batch, times its share of the texts, so that they sum to the mean.

    Args:
        reconstructor: The reconstructor.
        tokenizer: Its tokenizer.
        template: Its prompt.
        texts: Explanations, without tags.
        vectors: The vector of each.
        batch_size: Texts per forward pass.
    """
    prompts = [template.replace(EXPLANATION_SLOT, text) for text in texts]
    encoded: list[list[int]] = tokenizer(prompts)["input_ids"] if prompts else []
    device = reconstructor.head.weight.device
    # Long texts come first, so that running out of memory shows at once, and padding is short.
    order = sorted(range(len(encoded)), key=lambda number: -len(encoded[number]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = len(encoded[rows[0]])
        batch = {
            # Attention is causal, so nothing sees the padding.
            "input_ids": torch.tensor(
                [encoded[i] + [0] * (width - len(encoded[i])) for i in rows], device=device
            ),
            "last": torch.tensor([len(encoded[i]) - 1 for i in rows], device=device),
            "vectors": vectors[rows].to(device),
        }
        yield reconstruction_loss(reconstructor, batch) * (len(rows) / len(order))
