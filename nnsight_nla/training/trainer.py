"""`transformers.Trainer`, quiet: no files, no calls home, no printing.

A half of an NLA gives the loss of a batch (`LossOf`) and gets everything else from here: the
schedule, batches of about the same length, accumulation, mixed precision and several devices
(through `accelerate launch`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from .rows import Rows, collate
from .settings import Settings

LossOf = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""The loss of a batch, given the model as the trainer wraps it."""
Report = Callable[[str], None]
"""What gets a line of progress about ten times in a training."""


def fit(
    model: nn.Module,
    rows: Rows,
    loss_of: LossOf,
    settings: Settings,
    report: Report | None = None,
) -> None:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: What is trained.
        rows: What it is trained on, as often as `settings.steps` asks.
        loss_of: The loss of a batch of `collate`.
        settings: Steps, rates, batches, seed.
        report: Called with a line of progress.
    """
    # The trainer insists on a folder; nothing is written to it, and it goes when training ends.
    with tempfile.TemporaryDirectory(prefix="nnsight_nla-") as folder:
        trainer = _Trainer(
            model=model,
            args=_arguments(folder, settings),
            train_dataset=rows,
            data_collator=collate,
            callbacks=[] if report is None else [_Reporting(report)],
        )
        trainer.loss_of = loss_of
        # `loss_of` is already a mean, so accumulated passes are averaged by the trainer.
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


def _arguments(folder: str, settings: Settings) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.final_rate},
        warmup_steps=settings.warmup,
        weight_decay=settings.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=settings.precision == "bfloat16",
        train_sampling_strategy="group_by_length",
        dataloader_drop_last=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        logging_steps=max(1, settings.steps // 10),
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )


class _Trainer(Trainer):
    """The trainer, with the loss of one half of an NLA."""

    loss_of: LossOf

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        return self.loss_of(model, inputs)


class _Reporting(TrainerCallback):
    def __init__(self, report: Report) -> None:
        self.report = report

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            step, steps = state.global_step, state.max_steps
            self.report(f"step {step} of {steps}, loss {float(logs['loss']):.4f}")
