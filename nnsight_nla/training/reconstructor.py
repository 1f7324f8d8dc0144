"""Train a reconstructor: text in, the vector that it explains out.

The base is cut after block K, whose output the vectors are, and loses its final norm, so that the
residual at the last token is in the space of the vectors. A square, bias-free head that starts as
the identity follows. Only directions are compared, so only directions are learned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ..checkpoint.checkpoint import Checkpoint
from ..core.similarity import normalise
from ..errors import InjectionError
from ..models import hosts
from ..models.reconstructor_files import shorten
from .adapters import with_adapters
from .files import Files, Log, Report
from .held_out import HeldOut, reconstructor_figures
from .rows import RowsLike, TrainingError, reconstructor_rows
from .settings import Settings
from .trainer import Measurement, fit, prepare
from .verbalizer import text_only


class Reconstructor(nn.Module):
    """The truncated base and its head."""

    def __init__(self, model: Any, layer: int, head: Tensor | None = None) -> None:
        """Cut `model` in place after block `layer` and add a head.

        Args:
            model: A causal language model; it may be cut already.
            layer: K, the last block that is kept.
            head: The matrix of the head, ``[d_model, d_model]``; the identity unless given.

        Raises:
            TrainingError: `model` has fewer blocks, or its final norm cannot be found.
        """
        super().__init__()
        depth = hosts.text_config(model).num_hidden_layers
        if not 0 <= layer < depth:
            raise TrainingError(
                f"{hosts.describe(model)} has blocks 0 to {depth - 1}; a reconstructor of layer "
                f"{layer} cannot be cut from it."
            )
        self.layer, self.model = layer, model
        self.final_norm_name, norm = _truncate(model, layer)
        self.final_norm = norm.requires_grad_(False)  # Not run; kept to be saved.
        width = hosts.width(model)
        dtype = model.dtype if head is None else head.dtype
        self.head = nn.Linear(width, width, bias=False, dtype=dtype, device=model.device)
        if head is None:
            nn.init.eye_(self.head.weight)
        else:
            self.head.weight.data.copy_(head)

    @property
    def adapted(self) -> bool:
        """Whether `model` is the base with adapters on it."""
        return hasattr(self.model, "get_base_model")

    def forward(
        self, input_ids: Int[Tensor, "batch seq"], last: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch d_model"]:
        """Reconstruct a vector, of any length, at each row's last token.

        Args:
            input_ids: The reconstructor's prompts, padded on the right.
            last: The position of each row's last real token.
        """
        plain = self.model.get_base_model() if self.adapted else self.model
        output = plain.base_model(
            input_ids=input_ids, use_cache=False, **text_only(plain, input_ids)
        )
        rows = torch.arange(len(last), device=last.device)
        read = output.last_hidden_state[rows, last]
        return self.head(read.to(self.head.weight.dtype))


def train_reconstructor(
    model: Any,
    tokenizer: Any,
    rows: RowsLike,
    checkpoint: Checkpoint,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    *,
    report: Report | None = None,
    held_out: HeldOut | None = None,
    files: Files | None = None,
    log: Log | None = None,
) -> Reconstructor:
    """Cut and fine-tune `model` into a reconstructor.

    Args:
        model: The causal language model to start from, usually the target itself; cut and
            trained in place.
        tokenizer: Its tokenizer.
        rows: Training rows: a list of `Row`, or a file of them (`Published`); the explanation is
            the text between the response's tags.
        checkpoint: The reconstructor's template and the layer.
        settings: Steps, rates, batches; with `Settings.lora` adapters and the head are trained.
        report: Called with a line of progress.
        held_out: Rows to measure on during training: loss, cosine, FVE.
        files: Where to save the state of the training, and to resume from if there is one.
        log: A list that gets the losses and figures, by step.

    Returns:
        The reconstructor in evaluation mode.

    Raises:
        TrainingError: Rows, model and checkpoint do not fit each other, or the disk is full.
    """
    if hosts.width(model) != checkpoint.d_model:
        raise TrainingError(
            f"{hosts.describe(model)} has d_model {hosts.width(model)}, the checkpoint says "
            f"{checkpoint.d_model}. A reconstructor is cut from a model as wide as its target."
        )
    tokenized = reconstructor_rows(rows, tokenizer, checkpoint)
    reconstructor = Reconstructor(model, checkpoint.layer)
    prepare(model, settings)
    if settings.lora is not None:
        reconstructor.model = with_adapters(model, settings.lora, settings.seed)
        # PEFT makes the adapters float32 on bfloat16 weights; so is the head.
        reconstructor.head.float()
    measurement = None
    if held_out is not None:
        some = reconstructor_rows(held_out.rows, tokenizer, checkpoint)
        figures = reconstructor_figures(held_out, some, reconstruction_loss)
        measurement = Measurement(figures, held_out.every, held_out.best, held_out.sometimes)
    fit(
        reconstructor, tokenized, reconstruction_loss, settings, report,
        measurement=measurement, files=files, log=log,
    )  # fmt: skip
    return reconstructor


def reconstruction_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the mean squared error between normalised vectors, ``2 * (1 - cosine)``."""
    predicted = model(batch["input_ids"], batch["last"])
    return mse_loss(normalise(predicted), normalise(batch["vectors"]))


def _truncate(model: Any, layer: int) -> tuple[str, nn.Module]:
    """Keep blocks 0 to `layer`, replace the final norm by the identity, and update the config.

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
    if len(blocks) > layer + 1:
        setattr(decoder, name, blocks[: layer + 1])
    setattr(decoder, norm_name, nn.Identity())
    shorten(model.config, layer + 1)
    return norm_path, norm
