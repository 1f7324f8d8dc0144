"""`transformers.Trainer`, quiet: no calls home, no printing, and no files but those of `Files`.

A half of an NLA gives the loss of a batch (`LossOf`) and gets everything else from here: the
schedule, batches of about the same length, accumulation, mixed precision, several devices (a
process on each), figures on held-out rows while it runs (`Held`), and going on after a ``kill -9``
(`Files`): the order of the rows follows from the seed alone, so a run that was resumed ends at the
weights of one that was not disturbed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
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

from .atomic_folder import disk_errors
from .rows import Rows, TrainingError, collate
from .settings import Settings

LossOf = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""The loss of a batch, given the model as the trainer wraps it."""
Report = Callable[[str], None]
"""What gets a line of progress about ten times in a training."""
Log = list[dict[str, float]]
"""What was measured, in order: ``step``, and ``loss`` or figures named ``eval_...``."""
_WEIGHTS = "model.safetensors"
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Held:
    """Figures on rows that are not trained on, while a training runs."""

    measure: Callable[[nn.Module], dict[str, float]]
    """The figures of the model as it is, by name."""
    every: int
    """Steps between two measurements."""


@dataclass(frozen=True)
class Files:
    """What a training writes while it runs."""

    folder: Path
    """Gets a checkpoint of the training now and then; the last complete one is gone on from."""
    every: int
    """Steps between two of them; the two newest are kept."""
    tensorboard: Path | None = None
    """Gets TensorBoard's events."""

    def last(self) -> Path | None:
        """The newest checkpoint that was written to its end."""
        found = sorted(self.folder.glob("checkpoint-*"), key=lambda each: -_step(each))
        return next((each for each in found if _complete(each)), None)


def fit(
    model: nn.Module,
    rows: Rows,
    loss_of: LossOf,
    settings: Settings,
    report: Report | None = None,
    *,
    held: Held | None = None,
    files: Files | None = None,
) -> Log:
    """Train `model` in place and leave it in evaluation mode.

    Args:
        model: What is trained.
        rows: What it is trained on, as often as `settings.steps` asks.
        loss_of: The loss of a batch of `collate`.
        settings: Steps, rates, batches, seed.
        report: Called with a line of progress.
        held: What is measured on held-out rows as it goes.
        files: Where it can be resumed from; what is there already is.

    Returns:
        The losses and the figures, by step.

    Raises:
        TrainingError: The disk is full (the last training checkpoint stays), TensorBoard is asked
            for and not installed, or bfloat16 on a GPU that does not compute in it.
    """
    check_precision(settings)
    # The trainer insists on a folder; without `files` nothing is written to it, and it goes.
    with tempfile.TemporaryDirectory(prefix="nnsight_nla-") as nowhere:
        trainer = _Trainer(
            model=model,
            args=_arguments(settings, nowhere, held, files),
            train_dataset=rows,
            eval_dataset=None if held is None else rows,  # Asked for; `evaluate` reads its own.
            data_collator=collate,
            callbacks=_callbacks(report, files),
        )
        trainer.loss_of, trainer.held, trainer.rows = loss_of, held, rows
        # `loss_of` is already a mean, so accumulated passes are averaged by the trainer.
        trainer.model_accepts_loss_kwargs = False
        trainer.remove_callback(PrinterCallback)
        last = None if files is None else files.last()
        what = "Nothing" if files is None else f"The training's checkpoints in {files.folder}"
        if last is not None and _step(last) >= settings.steps:
            # All that was missing is the checkpoint under its own name.
            trainer._load_from_checkpoint(str(last))
            trainer.state = TrainerState.load_from_json(str(last / _STATE))
        else:
            with disk_errors(f"{what} could not be written", "Then type the same command again"):
                trainer.train(resume_from_checkpoint=None if last is None else str(last))
    model.eval()
    return [_entry(line) for line in trainer.state.log_history if _figures(line)]


def check_precision(settings: Settings) -> None:
    """Refuse bfloat16 on a GPU that does not compute in it."""
    if settings.precision == "bfloat16" and torch.cuda.is_available() and not has_bfloat16():
        raise TrainingError(
            f"{torch.cuda.get_device_name()} does not compute in bfloat16. Train in float32: "
            "Settings(precision='float32'), --no-bf16."
        )


def has_bfloat16() -> bool:
    """Whether there is a GPU that computes in bfloat16 by itself."""
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def prepare(model: Any, settings: Settings) -> None:
    """Have `model`, a transformers model, compute as `settings` says."""
    if settings.activations == "recompute":
        # The reentrant kind loses the gradients of adapters on a frozen embedding.
        model.gradient_checkpointing_enable({"use_reentrant": False})


def _arguments(
    settings: Settings, nowhere: str, held: Held | None, files: Files | None
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=nowhere if files is None else str(files.folder),
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
        # Without it the trainer insists on a GPU for bfloat16.
        use_cpu=not torch.accelerator.is_available(),
        bf16=settings.precision == "bfloat16",
        dataloader_drop_last=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no" if files is None else "steps",
        save_steps=1 if files is None else files.every,
        save_total_limit=2,
        eval_strategy="no" if held is None else "steps",
        eval_steps=None if held is None else held.every,
        logging_steps=max(1, settings.steps // 10),
        report_to="none",
        disable_tqdm=True,
        seed=settings.seed,
    )


def _callbacks(report: Report | None, files: Files | None) -> list[TrainerCallback]:
    found: list[TrainerCallback] = [] if report is None else [_Reporting(report)]
    if files is not None and files.tensorboard is not None:
        from transformers.integrations import TensorBoardCallback, is_tensorboard_available

        if not is_tensorboard_available():
            raise TrainingError(
                "TensorBoard is not installed: pip install 'nnsight-nla[tensorboard]'. Or leave "
                "out --tensorboard."
            )
        from torch.utils.tensorboard import SummaryWriter

        found.append(TensorBoardCallback(SummaryWriter(str(files.tensorboard))))
    return found


class _Trainer(Trainer):
    """The trainer, with the loss and the figures of one half of an NLA."""

    loss_of: LossOf
    held: Held | None
    rows: Rows

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any
    ) -> Tensor:
        return self.loss_of(model, inputs)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        held, model = cast("Held", self.held), self.accelerator.unwrap_model(self.model)
        model.eval()
        with torch.no_grad():
            figures = {f"eval_{name}": value for name, value in held.measure(model).items()}
        self.log(figures)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, figures
        )
        return figures

    def _get_train_sampler(self, *_: Any) -> Sampler[int]:
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return _Order(self.rows.lengths(), size, self.args.seed)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
        """What is trained and nothing else: the base of an adapter stays where it is."""
        from safetensors.torch import save_file

        folder = Path(cast("str", output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: each.detach().contiguous() for name, each in _trained(self.model).items()}
        save_file(trained, folder / _WEIGHTS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from safetensors.torch import load_file

        stored = load_file(Path(resume_from_checkpoint) / _WEIGHTS)
        with torch.no_grad():
            for name, weight in _trained(model or self.model).items():
                weight.copy_(stored[name])


class _Order(Sampler[int]):
    """Rows of about the same length in a batch, in an order that epoch and seed decide alone.

    transformers' own order goes from long batches to short ones again and again, which is a drift
    in what is learned; here the batches are shuffled, behind the longest, which comes first so
    that a memory that does not suffice is found out at once.
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
        # The last may not be full, and stays where it is.
        first, middle, last = batches[:1], batches[1:-1], batches[1:][-1:]
        order = torch.randperm(len(middle), generator=generator).tolist()
        shuffled = [*first, *(middle[place] for place in order), *last]
        return (row for batch in shuffled for row in batch)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


class _Reporting(TrainerCallback):
    def __init__(self, report: Report) -> None:
        self.report = report

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        figures = _figures(logs or {})
        if figures:
            held = "" if "loss" in figures else " held out:"
            said = (f"{name.removeprefix('eval_')} {x:.4f}" for name, x in figures.items())
            self.report(f"step {state.global_step} of {state.max_steps},{held} {', '.join(said)}")


def _figures(line: dict[str, Any]) -> dict[str, float]:
    """The losses and figures among what the trainer logs."""
    return {k: float(v) for k, v in line.items() if k == "loss" or k.startswith("eval_")}


def _entry(line: dict[str, Any]) -> dict[str, float]:
    return {"step": line["step"], **_figures(line)}


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if each.requires_grad}


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer writes its state last."""
    try:
        json.loads((checkpoint / _STATE).read_text("utf-8"))
    except (OSError, ValueError):
        return False
    return True
