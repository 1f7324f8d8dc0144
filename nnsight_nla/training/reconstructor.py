"""The warm start of a reconstructor: text in, the vector it explains out.

The base is cut after block K, the block whose output the vector is, and loses its final norm, so
that what is read at the last token lives in the vector's own space. A square, bias-free head that
starts as the identity follows. Only directions are compared (see `scoring`), so only they are
learned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from .. import hosts
from ..checkpoint import Checkpoint
from ..errors import InjectionError
from ..layouts import shorten
from ..scoring import normalise
from .rows import TrainingError, reconstructor_rows
from .settings import Settings
from .trainer import Report, fit


class Reconstructor(nn.Module):
    """The truncated base and its head."""

    def __init__(self, model: Any, layer: int) -> None:
        """Cut `model` in place after block `layer` and put an identity head behind it.

        Raises:
            TrainingError: `model` has fewer blocks, or its final norm is not where models have it.
        """
        super().__init__()
        depth = hosts.text_config(model).num_hidden_layers
        if not 0 <= layer < depth:
            raise TrainingError(
                f"{hosts.describe(model)} has blocks 0 to {depth - 1}; a reconstructor of layer "
                f"{layer} cannot be cut from it."
            )
        self.layer, self.model = layer, model
        self.final_norm_name, self.final_norm = _truncate(model, layer)
        width = hosts.width(model)
        self.head = nn.Linear(width, width, bias=False, dtype=model.dtype, device=model.device)
        nn.init.eye_(self.head.weight)

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], last: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        """The reconstruction read at each row's last token, of any length.

        Args:
            input_ids: The reconstructor's prompts, padded on the right.
            last: The position of each row's last real token.
        """
        output = self.model.base_model(input_ids=input_ids, use_cache=False)
        rows = torch.arange(len(last), device=last.device)
        return self.head(output.last_hidden_state[rows, last])


def train_reconstructor(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    checkpoint: Checkpoint,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    report: Report | None = None,
) -> Reconstructor:
    """Cut and fine-tune `model` into a reconstructor.

    Args:
        model: The causal language model to start from, usually the target itself; cut and
            trained in place.
        tokenizer: Its tokenizer.
        rows: Training rows (`Row`); the explanation is what stands between the response's tags.
        checkpoint: The reconstructor's template and the layer.
        settings: Steps, rates, batches. Adapters are for verbalizers only.
        report: Called with a line of progress.

    Returns:
        The reconstructor in evaluation mode.

    Raises:
        TrainingError: Rows, model and checkpoint do not fit each other.
    """
    if settings.lora is not None:
        raise TrainingError(
            "A reconstructor trains all its weights: Settings(lora=None). Adapters are for "
            "verbalizers."
        )
    if hosts.width(model) != checkpoint.d_model:
        raise TrainingError(
            f"{hosts.describe(model)} has d_model {hosts.width(model)}, the checkpoint says "
            f"{checkpoint.d_model}. A reconstructor is cut from a model as wide as its target."
        )
    tokenized = reconstructor_rows(rows, tokenizer, checkpoint)
    reconstructor = Reconstructor(model, checkpoint.layer)
    fit(reconstructor, tokenized, reconstruction_loss, settings, report)
    return reconstructor


def reconstruction_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The mean squared error per entry between normalised vectors, ``2 * (1 - cosine)``."""
    predicted = model(batch["input_ids"], batch["last"])
    return mse_loss(normalise(predicted), normalise(batch["vectors"]))


def _truncate(model: Any, layer: int) -> tuple[str, nn.Module]:
    """Keep blocks 0 to `layer`, replace the final norm by the identity, and say so in the config.

    Returns:
        The path of the final norm, and the norm that was there.
    """
    try:
        norm_path = hosts.final_norm_path(model)
    except InjectionError as error:
        raise TrainingError(str(error)) from error
    norm = model.get_submodule(norm_path)
    decoder_path, _, norm_name = norm_path.rpartition(".")
    decoder = model.get_submodule(decoder_path)
    # The blocks are found by the configuration's count, which is about to change.
    first = hosts.block(model, 0)
    name, blocks = next(
        (name, module)
        for name, module in decoder.named_children()
        if isinstance(module, nn.ModuleList) and len(module) and module[0] is first
    )
    setattr(decoder, name, blocks[: layer + 1])
    setattr(decoder, norm_name, nn.Identity())
    shorten(model.config, layer + 1)
    return norm_path, norm
