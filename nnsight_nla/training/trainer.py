"""Run `transformers.Trainer` without telemetry, printing, or files other than those of `Files`.

The verbalizer and the reconstructor each supply the loss of a batch (`LossOf`). This module does
the rest: schedule, batches of similar length, accumulation, mixed precision, several devices (a
process on each), measurements on held-out rows (`Measurement`), and resuming after a ``kill -9``
(`Files`). The order of the rows follows from the seed alone, so a resumed run ends at the weights
of an undisturbed one.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..storage.atomic import is_full
from .best import CHECKPOINT, WEIGHTS, Best, RememberBest, best_of, larger_is_better, saved_steps
from .files import STATE, Files, Log, Report, step_of
from .reporting import Reporting, figures_of
from .rows import Rows, TrainingError, collate
from .settings import Settings

LossOf = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""The loss of a batch, from the model as the trainer wraps it."""


@dataclass(frozen=True)
class Measurement:
    """A measurement on held-out rows that is repeated during training."""

    measure: Callable[[nn.Module], dict[str, float]]
    """Return the figures of the current model, by name."""
    every: int
    """Steps between two measurements."""
    best: str | None = None
    """The figure by which the best of the measured steps is kept; ``None`` keeps the last step."""
    sometimes: Collection[str] = ()
    """Figures that a measurement may lack."""


def fit(
    model: nn.Module,
    rows: Rows,
    loss_of: LossOf,
    settings: Settings,
    report: Report | None = None,
    *,
    measurement: Measurement | None = None,
    files: Files | None = None,
    log: Log | None = None,
) -> None:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: The module to train.
        rows: Training rows, repeated until `settings.steps` are done.
        loss_of: The loss of a batch of `collate`.
        settings: Steps, rates, batches, seed.
        report: Called with a line of progress.
        measurement: A measurement on held-out rows.
        files: Where to save the state of the training, and to resume from if there is one.
        log: A list that gets the losses and figures, by step.

    Raises:
        TrainingError: The disk is full (the training's last checkpoint is kept), TensorBoard is
            requested but not installed, or the GPU does not support bfloat16. Or the figure that
            the best step is kept by is not measured, or not where a checkpoint is saved.
    """
    check_precision(settings.precision)
    best = None if measurement is None else _checked_best(measurement, files)
    # The trainer needs a folder; without `files` nothing is written to it.
    with tempfile.TemporaryDirectory(prefix="nnsight_nla-") as unused:
        trainer = _Trainer(
            model=model,
            args=_arguments(settings, unused, measurement, files),
            train_dataset=rows,
            # The trainer requires one; `evaluate` below does not read it.
            eval_dataset=None if measurement is None else rows,
            data_collator=collate,
            callbacks=_callbacks(report, files, best),
        )
        trainer.loss_of, trainer.measurement, trainer.rows = loss_of, measurement, rows
        # `loss_of` is already a mean, so accumulated passes are averaged by the trainer.
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        last = None if files is None else files.last(settings.steps)
        try:
            if last is not None and step_of(last) >= settings.steps:
                trainer.restore(last)  # Trained already, but not saved under its final name.
            else:
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except Exception as error:
            if files is None or not is_full(error, files.folder):
                raise
            raise TrainingError(
                f"The disk of {files.folder} is full: the training's checkpoints could not be "
                "written. Free some space, and rerun with the original options to resume."
            ) from error
        kept = None if best is None or files is None else trainer.keep_best(best, files.folder)
    model.eval()
    if best is not None and report is not None:
        report(_said(best, kept, trainer.state.global_step))
    if log is not None:
        log.extend(_lines(trainer.state.log_history, kept))


def check_precision(precision: str) -> None:
    """Raise if a training is to compute in bfloat16 and the GPU does not support it."""
    if precision == "bfloat16" and torch.cuda.is_available() and not has_bfloat16():
        raise TrainingError(
            f"{torch.cuda.get_device_name()} does not support bfloat16. Train in float32: "
            "Settings(precision='float32')."
        )


def has_bfloat16() -> bool:
    """Return whether there is a GPU that supports bfloat16 without emulation."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def prepare(model: Any, settings: Settings) -> None:
    """Turn on gradient checkpointing in a transformers model if `settings` ask for it."""
    if settings.activations == "recompute":
        # The reentrant kind loses the gradients of adapters on a frozen embedding.
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _checked_best(measurement: Measurement, files: Files | None) -> str | None:
    """Return the figure that the best step is kept by, if its checkpoints are saved."""
    best, every = measurement.best, measurement.every
    if best is not None and (files is None or files.every != every):
        found = "no files" if files is None else f"files that are saved every {files.every} steps"
        raise TrainingError(
            f"best={best!r} keeps the checkpoint of a step that is measured, every {every} steps, "
            f"and got {found}. Pass files=Files(folder, every={every}), or leave best out."
        )
    return best


def _arguments(
    settings: Settings, unused: str, measurement: Measurement | None, files: Files | None
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=unused if files is None else str(files.folder),
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
        # Otherwise the trainer requires a GPU for bfloat16.
        use_cpu=not torch.accelerator.is_available(),
        bf16=settings.precision == "bfloat16",
        dataloader_drop_last=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no" if files is None else "steps",
        save_steps=1 if files is None else files.every,
        save_total_limit=2,
        eval_strategy="no" if measurement is None else "steps",
        eval_steps=None if measurement is None else measurement.every,
        **_tracked(None if measurement is None else measurement.best),
        logging_steps=max(1, settings.steps // 10),
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )


def _tracked(best: str | None) -> dict[str, Any]:
    """Return the arguments by which the trainer remembers the best checkpoint, and keeps it.

    Not ``load_best_model_at_end``: it would look for a whole model, or for PEFT's files.
    """
    if best is None:
        return {}
    return {"metric_for_best_model": f"eval_{best}", "greater_is_better": larger_is_better(best)}


def _callbacks(
    report: Report | None, files: Files | None, best: str | None
) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [] if report is None else [Reporting(report)]
    if files is not None and best is not None:
        found.append(RememberBest(best, files.folder))
    if files is not None and files.tensorboard is not None:
        from transformers.integrations.integration_utils import (
            TensorBoardCallback,
            is_tensorboard_available,
        )

        if not is_tensorboard_available():
            raise TrainingError(
                "TensorBoard is not installed: pip install 'nnsight-nla[tensorboard]'. Or remove "
                f"tensorboard={str(files.tensorboard)!r}."
            )
        from torch.utils.tensorboard import SummaryWriter

        found.append(TensorBoardCallback(SummaryWriter(str(files.tensorboard))))
    return found


class _Trainer(Trainer):
    """The trainer, with the loss and the measurement of a verbalizer or a reconstructor."""

    loss_of: LossOf
    measurement: Measurement | None
    rows: Rows

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        return self.loss_of(model, inputs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        assert self.measurement is not None
        model = self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad():
            measured = self.measurement.measure(model)
        # Of several processes, all have to agree on the best step.
        (measured,) = broadcast_object_list([measured])
        best = self.measurement.best
        tracked = {} if best is None else {f"eval_{best}": self._compared(best, measured)}
        figures = {f"eval_{name}": value for name, value in measured.items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, figures
        )
        return {**figures, **tracked}

    def _compared(self, best: str, measured: dict[str, float]) -> float:
        """Return what the trainer compares; NaN, which never is the best, for what is no number."""
        assert self.measurement is not None
        if best not in measured and best not in self.measurement.sometimes:
            raise TrainingError(
                f"best={best!r} is not measured in this training. Expected one of "
                f"{', '.join(measured)}."
            )
        value = float(measured.get(best, math.nan))
        return value if math.isfinite(value) else math.nan

    def keep_best(self, figure: str, folder: Path) -> Best | None:
        """Load the best weights into the model of every process; ``None`` keeps those it has."""
        self.accelerator.wait_for_everyone()  # The first process has written its last checkpoint.
        found = best_of(self.state.log_history, figure, saved_steps(folder))
        (found,) = broadcast_object_list([found])
        if found is not None and found.step != self.state.global_step:
            self._load_from_checkpoint(str(folder / f"{CHECKPOINT}{found.step}"))
        return found

    def restore(self, checkpoint: Path) -> None:
        """Load the weights and the state of a training that is done."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / STATE))

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:  # noqa: ARG002
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _Order(self.rows.lengths(), size, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        """Save the trained parameters only, without the base of an adapter."""
        from safetensors.torch import save_file

        folder = Path(cast("str", output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {
            name: each.detach().contiguous()
            for name, each in _trained(cast("nn.Module", self.model)).items()
        }
        save_file(trained, folder / WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        stored = load_file(Path(resume_from_checkpoint) / WEIGHTS)
        with torch.no_grad():
            for name, weight in _trained(cast("nn.Module", model or self.model)).items():
                weight.copy_(stored[name])


class _Order(Sampler[int]):
    """Batches of similar length, in an order that depends on epoch and seed only.

    transformers' own order goes from long batches to short ones again and again, which makes what
    is learned drift. Here the batches are shuffled, except that the longest comes first, so that
    running out of memory shows at once.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        grouped = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        batches = [
            grouped[start : start + self.batch_size]
            for start in range(0, len(grouped), self.batch_size)
        ]
        # The last batch may be smaller, so it stays last.
        first, middle, last = batches[:1], batches[1:-1], batches[1:][-1:]
        order = torch.randperm(len(middle), generator=generator, device="cpu").tolist()
        shuffled = [*first, *(middle[index] for index in order), *last]
        return (row for batch in shuffled for row in batch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def _lines(history: list[dict[str, float]], kept: Best | None) -> Iterator[dict[str, float]]:
    """Yield the losses and figures by step, and mark those of the step that was kept."""
    for line in history:
        figures = figures_of(line)
        measured = any(name.startswith("eval_") for name in figures)
        mark = kept is not None and measured and line["step"] == kept.step
        if figures:
            yield {"step": line["step"], **figures, **({"kept": 1.0} if mark else {})}


def _said(best: str, kept: Best | None, steps: int) -> str:
    if kept is None:
        return f"kept step {steps}, the last: {best} was a number at no measurement"
    return f"kept step {kept.step} of {steps}, the best by {best}: {kept.value:z.4f}"


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}
