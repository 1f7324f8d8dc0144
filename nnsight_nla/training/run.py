"""Train from a published file of rows to a folder that ``NLA(path)`` loads.

Mistakes are found before they cost anything: the name of the folder, the rows' sidecar against the
base model's tokenizer and shape, then every row; only then are weights loaded. The state of a
running training is in the folder ``OUT.training``; rerun with the same options to resume from it.
The checkpoint gets its name when it is complete, and the work folder is removed::

    trained = train("av", "rows.parquet", base="Qwen/Qwen3-8B", out="checkpoints/av")
    NLA(trained.folder)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..core.baseline import Baseline
from ..core.injection import Injection
from ..errors import ReconstructionError
from ..models.loading import check_dtype
from ..models.weights import load_module
from ..storage.atomic import atomic_file, write_errors
from .compatibility import compatible_checkpoint, read_base
from .held_out import HeldOut, Metric
from .published import HELD_OUT, Published
from .reconstructor import train_reconstructor
from .rows import TrainingError, checked_batches
from .saving import save_reconstructor, save_verbalizer
from .settings import Settings
from .trainer import Files, Log, Report, check_precision
from .verbalizer import train_verbalizer

Role = Literal["av", "ar"]
# The options of a training, in its work folder; the name is that of earlier versions.
_OPTIONS = "begun.json"


@dataclass(frozen=True)
class Watching:
    """What to measure and save while a training runs."""

    every: int = 100
    """Steps between two measurements on held-out rows, and two training checkpoints."""
    rows: int = 64
    """The number of held-out rows to measure; 0 for none."""
    ar: str | Path | None = None
    """A reconstructor, to measure the FVE of a verbalizer's texts."""
    max_new_tokens: int = 200
    """The longest reply of a measurement, in tokens."""
    tensorboard: Path | None = None
    """The folder of TensorBoard's events."""
    judges: Mapping[str, Metric] = field(default_factory=dict[str, "Metric"])
    """More metrics, by name: of a verbalizer's texts, their labels and their vectors."""


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    """The checkpoint."""
    checkpoint: Checkpoint
    """Its settings, as in its sidecar."""
    log: Log
    """Losses and figures, by step."""


def train(
    role: Role,
    rows: str | Path,
    *,
    base: str | Path,
    out: str | Path,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    watching: Watching = Watching(),
    layer: int | None = None,
    base_name: str | None = None,
    injection: Injection | None = None,
    held_out: float = HELD_OUT,
    dtype: str | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a verbalizer or a reconstructor from a Parquet file of rows.

    On several devices a process runs on each, with a copy of the model and its share of the
    batches, and the first one reports and writes: ``torchrun --nproc-per-node 4 --no-python
    nnsight-nla train ...``, or ``accelerate launch`` around a script that calls `train`.

    Args:
        role: ``"av"``, the verbalizer, or ``"ar"``, the reconstructor.
        rows: The file, with its sidecar.
        base: The model to start from, usually the target: a folder or a Hub id.
        out: The folder of the checkpoint; nothing of that name exists yet.
        settings: Steps, rates, batches, adapters.
        watching: What to measure during training.
        layer: K, if the rows have no sidecar that names it.
        base_name: The name of `base` in the rows' sidecar, if it is another.
        injection: How vectors are written; the sidecar's, or norm-matched addition at block 1.
        held_out: The share of documents that are not trained on.
        dtype: The dtype to load the weights in: by default float32 if all are trained, and as
            stored under adapters (float32 for float16).
        report: Called with lines of progress.

    Raises:
        TrainingError: Something does not fit; the message names file and row. Or the disk is full.
        CheckpointError: The sidecar, the tokenizer or the base cannot be read.
    """
    report = report if is_main_process() else None
    out = Path(out).expanduser().absolute()
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise TrainingError(f"{out} exists. Choose another out=, or remove it.")
    check_precision(settings)
    check_dtype({"dtype": dtype}, quantized=False)
    work = out.with_name(f"{out.name}.training")
    part = "train" if held_out else "all"
    source = Published(rows, part=part, held_out=held_out, scratch=work)
    tokenizer, checkpoint = compatible_checkpoint(source, base, layer, base_name, injection)
    _start_or_resume(work, role, source, base, checkpoint, settings)
    if report is not None:
        report(f"rows: {len(source):,} of {source.name} to train on")
    checkpoint = replace(checkpoint, baseline=_baseline(source, checkpoint, role))
    held = _held_out(source, checkpoint, base, watching)
    log: Log = []
    files = Files(work, watching.every, watching.tensorboard)
    model, stored = _load(base, dtype, settings)
    train_role: Callable[..., Any] = train_verbalizer if role == "av" else train_reconstructor
    trained = train_role(
        model, tokenizer, source, checkpoint, settings,
        report=report, held_out=held, files=files, log=log,
    )  # fmt: skip
    save: Callable[..., None] = save_verbalizer if role == "av" else save_reconstructor
    _wait_for_all()  # No other process writes to the work folder any more...
    if is_main_process():
        entries = {"file": source.name, "rows": len(source), "held_out": source.held_out}
        save(
            out, trained, tokenizer, checkpoint,
            advice=f"The training is in {work}: rerun with the original options to save it.",
            trained_on=[entries],
            training_log=log,
            dtype=stored if settings.lora is None else None,
        )  # fmt: skip
        shutil.rmtree(work, ignore_errors=True)
    _wait_for_all()  # ... and the checkpoint exists when any of them returns.
    return Trained(out, checkpoint, log)


def is_main_process() -> bool:
    """Return whether this process reports and writes: the first of several, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _wait_for_all() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _start_or_resume(
    work: Path, role: Role, rows: Published, base: str | Path, checkpoint: Checkpoint,
    settings: Settings,
) -> None:  # fmt: skip
    """Make the work folder; raise if it holds a training with other options."""
    size = rows.file.stat().st_size
    options = {
        "role": role,
        "rows": f"{rows.file.absolute()}, {size} bytes, {rows.held_out:g} held out",
        "base": str(base),
        "checkpoint": hashlib.sha256(repr(checkpoint).encode()).hexdigest()[:16],
        **asdict(settings),
    }
    file = work / _OPTIONS
    if not file.is_file():
        advice = "Choose another out=."
        with write_errors(work, advice=advice, error=TrainingError):
            work.mkdir(parents=True, exist_ok=True)
        with atomic_file(file, advice=advice, error=TrainingError) as stream:
            stream.write(json.dumps(options, indent=1).encode())
        return
    original = json.loads(file.read_text("utf-8"))
    original.setdefault("role", original.get("half"))  # Its name in earlier versions.
    differs = [
        f"{name}={original.get(name)!r} (now {value!r})"
        for name, value in options.items()
        if original.get(name) != value
    ]
    if differs:
        raise TrainingError(
            f"{work} holds a training with other options. Rerun with the original options to "
            f"resume: {', '.join(differs)}. Or remove that folder to start again."
        )


def _held_out(
    source: Published, checkpoint: Checkpoint, base: str | Path, watching: Watching
) -> HeldOut | None:
    if not watching.rows or source.part == "all":
        return None
    rows = Published(
        source.file, part="held out", held_out=source.held_out, limit=watching.rows,
        scratch=source.scratch,
    )  # fmt: skip
    if len(rows) == 0:
        raise TrainingError(
            f"{source.file} has no document among the {source.held_out:.0%} that are held out. "
            "Hold out more (held_out=0.2), or none (held_out=0)."
        )
    metrics = dict(watching.judges)
    if watching.ar is not None and checkpoint.baseline is not None:
        metrics["fve"] = _fve(base, watching.ar, checkpoint)
    return HeldOut(rows, watching.every, checkpoint.baseline, metrics, watching.max_new_tokens)


def _fve(base: str | Path, ar: str | Path, checkpoint: Checkpoint) -> Metric:
    """Return the FVE by a reconstructor as a metric; the verbalizer of its NLA is never loaded."""
    from ..nla import NLA

    load: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {}
    nla = NLA(base, ar=ar, checkpoint=checkpoint, dtype="auto", **load)

    def fve(texts: list[str], _labels: list[str], vectors: Tensor) -> float:
        return nla.score(texts, vectors, failures="zero").mean["fve"]

    return fve


def _baseline(source: Published, checkpoint: Checkpoint, role: Role) -> Baseline | None:
    """Check every row, and measure the FVE's denominator over the training rows.

    Returns:
        ``None`` if it cannot be measured: one row, or all rows of one direction.
    """
    name = f"block {checkpoint.layer} in {source.name}"
    batches = checked_batches(source, checkpoint, prompts=role == "av")
    try:
        return Baseline.from_vectors((batch.vectors for batch in batches), name=name)
    except ReconstructionError:
        return None


def _load(base: str | Path, dtype: str | None, settings: Settings) -> tuple[Any, torch.dtype]:
    """Load the model to fine-tune; return it and the dtype that its weights are stored in."""
    from transformers import AutoModelForCausalLM

    model = read_base("weights", base, partial(load_module, AutoModelForCausalLM), dtype="auto")
    stored = model.dtype
    # bfloat16 weights lose a step of 3e-5, and float16 overflows without a scaler.
    narrow = settings.lora is None or stored == torch.float16
    model.to(getattr(torch, dtype or ("float32" if narrow else str(stored).split(".")[1])))
    return model, stored
