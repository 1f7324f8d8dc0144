"""Train a verbalizer: a language model learns to explain a vector.

A forward hook writes the vector at the marker with `injection.write`, the function that inference
uses. The loss covers the response and its end of sequence; the prompt is the same in every row, so
there is nothing to learn from it.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..core.injection import Injection, write, write_slots
from ..models import hosts
from ..models.head import contiguous_head
from .adapters import with_adapters
from .files import Files, Log, Report
from .held_out import HeldOut, oracle_figures, verbalizer_figures
from .question_rows import question_rows
from .rows import IGNORED, Rows, RowsLike, TrainingError, verbalizer_rows
from .settings import Settings
from .trainer import Measurement, fit, prepare


class InjectionHook:
    """A forward hook on the injection site that writes the vectors of the current batch.

    It stays registered for the whole training rather than for one forward pass: with gradient
    checkpointing a block runs again in the backward pass and has to be written to again.
    """

    vectors: Float[Tensor, "batch d_model"] | Float[Tensor, "batch slots d_model"] | None = None
    """One vector per row, or one per slot; ``None`` writes nothing."""
    sites: Int[Tensor, "batch slots"] | None = None
    """The position of each slot, where every row has its own."""

    def __init__(self, position: int | Sequence[int], injection: Injection) -> None:
        self.position, self.injection = position, injection
        self._last = position if isinstance(position, int) else max(position)

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> Any:  # noqa: ARG002
        """Return the module's output with the vectors written into it."""
        if self.vectors is None:
            return output
        # Blocks return their residual alone, or in some families first in a tuple.
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] <= self._last:
            return output  # A generation step, after the prompt.
        if self.sites is not None:
            written = write_slots(hidden, self.vectors, self.sites, self.injection)
        else:
            written = write(hidden, self.vectors, self.position, self.injection)
        return (written, *output[1:]) if isinstance(output, tuple) else written


@contextmanager
def writing(
    model: nn.Module, position: int | Sequence[int], injection: Injection
) -> Generator[InjectionHook, None, None]:
    """Write into `model` at its injection site while the block runs.

    Args:
        model: A causal language model.
        position: The position of the marker; several positions get the same vector.
        injection: Site and operation.

    Yields:
        The hook; set its `vectors` before each forward pass.
    """
    layer = injection.layer
    # hosts takes plain modules as well as envoys.
    site = hosts.embedding(model) if layer is None else hosts.block(model, layer)  # type: ignore[arg-type]
    hook = InjectionHook(position, injection)
    handle = site.register_forward_hook(hook)
    try:
        yield hook
    finally:
        handle.remove()


def train_verbalizer(
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
) -> Any:
    """Fine-tune `model` into a verbalizer.

    Args:
        model: The causal language model to start from, usually the target itself; trained in place.
        tokenizer: Its tokenizer, with a chat template.
        rows: Training rows: a list of `Row`, or of `QuestionRow` for an oracle; or a file of them
            (`Published`).
        checkpoint: Prompt, marker and injection that inference will use.
        settings: Steps, rates, batches; with `Settings.lora` only adapters are trained.
        report: Called with a line of progress.
        held_out: Rows to measure on during training: loss, extraction rate, FVE.
        files: Where to save the state of the training, and to resume from if there is one.
        log: A list that gets the losses and figures, by step.

    Returns:
        The model in evaluation mode; wrapped by PEFT when `Settings.lora` is given.

    Raises:
        TrainingError: Rows, model and checkpoint do not fit each other, or the disk is full.
    """
    width = hosts.width(model)
    if width != checkpoint.d_model:
        raise TrainingError(
            f"{hosts.describe(model)} has d_model {width}, the checkpoint says "
            f"{checkpoint.d_model}. A verbalizer is trained from a model as wide as its target."
        )
    tokenized, prompt = _tokenized(rows, tokenizer, checkpoint)
    sites = (0,) if prompt is None else prompt.sites
    prepare(model, settings)
    with contiguous_head(model), writing(model, sites, checkpoint.injection) as hook:
        # The adapters wrap linear layers inside the blocks; the hooked block stays the same module.
        trained = (
            model if settings.lora is None else with_adapters(model, settings.lora, settings.seed)
        )

        def loss_of(wrapped: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
            hook.vectors, hook.sites = batch["vectors"], batch.get("sites")
            start = first_label(batch) if prompt is None else len(prompt.ids)
            return response_loss(wrapped, batch, start)

        measurement = None
        if held_out is not None:
            some, _ = _tokenized(held_out.rows, tokenizer, checkpoint)
            figures = (
                oracle_figures(held_out, some, loss_of)
                if prompt is None
                else verbalizer_figures(held_out, some, tokenizer, loss_of, prompt.opened)
            )
            measurement = Measurement(figures, held_out.every, held_out.best, held_out.sometimes)
        fit(
            trained, tokenized, loss_of, settings, report,
            measurement=measurement, files=files, log=log,
        )  # fmt: skip
    return trained


def _tokenized(
    rows: RowsLike, tokenizer: Any, checkpoint: Checkpoint
) -> tuple[Rows, Prompt | None]:
    """Return tokenized rows, and their prompt; an oracle's rows have one each."""
    if checkpoint.asks:
        return question_rows(cast("Any", rows), tokenizer, checkpoint), None
    return verbalizer_rows(rows, tokenizer, checkpoint)


def first_label(batch: Mapping[str, Tensor]) -> int:
    """Return the first position of a batch that the loss covers in some row."""
    return int((batch["labels"] != IGNORED).any(dim=0).nonzero()[0])


def response_loss(model: nn.Module, batch: Mapping[str, Tensor], start: int) -> Tensor:
    """Return the mean next-token loss on the response, including its end of sequence.

    Args:
        model: The verbalizer, inside a `writing` block.
        batch: From `collate`.
        start: The first position of the response.
    """
    logits = response_logits(model, batch, start)
    labels = batch["labels"][:, start:]
    return cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)


def response_logits(
    model: nn.Module, batch: Mapping[str, Tensor], start: int
) -> Float[Tensor, "batch response vocabulary"]:
    """Return only the logits that predict the tokens from position `start` on."""
    ids = batch["input_ids"]
    # Logits over a large vocabulary take most of a small batch's memory, so only those of the
    # response are computed, and the one before it, which predicts its first token.
    kept = ids.shape[1] - start + 1
    output = model(input_ids=ids, logits_to_keep=kept, use_cache=False, **text_only(model, ids))
    return output.logits[:, :-1]


def text_only(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """Return the arguments by which a vision-language model trains on text alone."""
    plain = model.module if isinstance(model, DistributedDataParallel) else model
    vision = getattr(plain.config, "vision_config", None) is not None
    return {"token_type_ids": torch.zeros_like(ids)} if vision and model.training else {}
