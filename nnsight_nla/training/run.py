"""One training as a command: published rows in, a folder that ``NLA(path)`` loads out.

Everything that can be wrong is looked for before it costs something: the folder's name, the rows'
sidecar against the base model's tokenizer and shape, then every row; only then are weights loaded.
While it trains, what it can be resumed from lies beside the output, in ``OUT.training``; the same
command goes on from there. The checkpoint gets its name when it is complete, and the work folder
goes::

    trained = train("av", "rows.parquet", base="Qwen/Qwen3-8B", out="checkpoints/av")
    NLA(trained.folder)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..core.baseline import Baseline
from ..core.injection import Injection
from ..errors import ReconstructionError
from .atomic_folder import check_free, disk_errors
from .compatibility import described
from .held_out import HeldOut, Judge
from .published import HELD_OUT, Published
from .reconstructor import train_reconstructor
from .rows import TrainingError, checked
from .saving import save_reconstructor, save_verbalizer
from .settings import Settings
from .trainer import Files, Log, Report, check_precision
from .verbalizer import train_verbalizer

Half = Literal["av", "ar"]


@dataclass(frozen=True)
class Watching:
    """What is measured and kept while a training runs."""

    every: int = 100
    """Steps between two measurements on held-out rows, and two training checkpoints."""
    rows: int = 64
    """How many held-out rows are measured; 0 for none."""
    ar: str | Path | None = None
    """A reconstructor that judges a verbalizer's texts: then there is an FVE."""
    max_new_tokens: int = 200
    """The longest reply of a measurement."""
    tensorboard: Path | None = None
    """A folder for TensorBoard's events."""
    judges: Mapping[str, Judge] = field(default_factory=dict[str, "Judge"])
    """Figures of your own: of a verbalizer's texts, their labels and their vectors."""


@dataclass(frozen=True)
class Trained:
    """A training that ended."""

    folder: Path
    """The checkpoint."""
    checkpoint: Checkpoint
    """What it was trained with, as its sidecar says."""
    log: Log
    """Losses and figures, by step."""


def train(
    half: Half,
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
    """Train one half of an NLA from a Parquet file of rows.

    On several devices a process runs on each, with a copy of the model and its share of the
    batches, and the first one reports and writes: ``torchrun --nproc-per-node 4 --no-python
    nnsight-nla train ...``, or ``accelerate launch`` around a script that calls `train`.

    Args:
        half: ``"av"``, the verbalizer, or ``"ar"``, the reconstructor.
        rows: The file; its sidecar lies beside it.
        base: The model to start from, usually the target: a folder or a Hub id.
        out: The checkpoint's folder; there must be nothing of that name.
        settings: Steps, rates, batches, adapters.
        watching: What is measured as it goes.
        layer: K, where the rows have no sidecar to say it.
        base_name: What the rows' sidecar calls `base`, where that is another name.
        injection: How vectors are written; the sidecar's, or norm-matched addition at block 1.
        held_out: The share of documents that are not trained on.
        dtype: What the weights are loaded in; float32 where all are trained, and as they are
            stored below adapters (float32 for float16).
        report: Called with lines of progress.

    Raises:
        TrainingError: Something does not fit; the message names file and row. Or the disk is full.
        CheckpointError: The sidecar, the tokenizer or the base cannot be read.
    """
    report = report if leads() else None
    out, say = Path(out).expanduser().absolute(), report or _quiet
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise TrainingError(f"{out} is there already. Choose another --out, or remove it.")
    check_free(out)
    check_precision(settings)
    work = out.with_name(f"{out.name}.training")
    part: Any = "train" if held_out else "all"
    source = Published(rows, part=part, held_out=held_out, scratch=work)
    tokenizer, checkpoint = described(source, base, layer, base_name, injection)
    _begin(work, half=half, rows=source, base=base, checkpoint=checkpoint, settings=settings)
    say(f"rows: {len(source):,} of {source.name} to train on")
    with disk_errors(f"The vectors of {rows} could not be laid out in {work}", "Then try again"):
        checkpoint = replace(checkpoint, baseline=_measured(source, checkpoint, half))
        held = _held_out(source, checkpoint, base, watching)
        log: Log = []
        options: dict[str, Any] = {
            "report": report,
            "held_out": held,
            "files": Files(work, watching.every, watching.tensorboard),
            "log": log,
        }
        loaded, stored = _load(base, dtype, settings)
        given = (loaded, tokenizer, source, checkpoint, settings)
        trainer: Any = train_verbalizer if half == "av" else train_reconstructor
        trained = trainer(*given, **options)
    save: Any = save_verbalizer if half == "av" else save_reconstructor
    entries = {
        "trained_on": [_provenance(source)],
        "training_log": log,
        "dtype": stored if settings.lora is None else None,
    }
    _together()  # No other process writes to the work folder any more...
    if leads():
        with _kept(work):
            save(out, trained, tokenizer, checkpoint, **entries)
        shutil.rmtree(work, ignore_errors=True)
    _together()  # ... and where this returns there is a checkpoint.
    return Trained(out, checkpoint, log)


def leads() -> bool:
    """Whether this process is the one that reports and writes: the first, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def _together() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _begin(work: Path, **identity: Any) -> None:
    """Make the work folder, or refuse to go on with one that was begun with something else."""
    rows: Published = identity["rows"]
    size = rows.file.stat().st_size
    now = {
        "half": identity["half"],
        "rows": f"{rows.file.absolute()}, {size} bytes, {rows.held_out:g} held out",
        "base": str(identity["base"]),
        "checkpoint": hashlib.sha256(repr(identity["checkpoint"]).encode()).hexdigest()[:16],
        **asdict(identity["settings"]),
    }
    file = work / "begun.json"
    if file.is_file():
        begun = json.loads(file.read_text("utf-8"))
        differs = [
            f"{name} {begun.get(name)!r}, now {value!r}"
            for name, value in now.items()
            if begun.get(name) != value
        ]
        if differs:
            raise TrainingError(
                f"{work} holds a training that was begun with {'; '.join(differs)}. Type what it "
                "was begun with to go on, or remove that folder to begin anew."
            )
        return
    with disk_errors(f"{work} could not be made", "Then try again"):
        work.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(now, indent=1), "utf-8")
        part.rename(file)


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
            "Hold out more (--held-out 0.2), or none (--held-out 0)."
        )
    judges = dict(watching.judges)
    if watching.ar is not None and checkpoint.baseline is not None:
        judges["fve"] = _fve(base, watching.ar, checkpoint)
    return HeldOut(rows, watching.every, checkpoint.baseline, judges, watching.max_new_tokens)


def _fve(base: str | Path, ar: str | Path, checkpoint: Checkpoint) -> Judge:
    """A reconstructor's judgement; the verbalizer beside it is never loaded."""
    from ..nla import NLA

    load: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {}
    nla = NLA(base, ar=ar, checkpoint=checkpoint, dtype="auto", **load)

    def fve(texts: list[str], _labels: list[str], vectors: Tensor) -> float:
        return nla.score(texts, vectors, failures="zero").mean["fve"]

    return fve


def _measured(source: Published, checkpoint: Checkpoint, half: Half) -> Baseline | None:
    """Check every row, and measure the FVE's denominator over all that is trained on.

    Returns:
        ``None`` where there is nothing to measure: one row, or all of one direction.
    """
    name = f"block {checkpoint.layer} in {source.name}"
    batches = checked(source, checkpoint, prompts=half == "av")
    try:
        return Baseline.from_vectors((batch.vectors for batch in batches), name=name)
    except ReconstructionError:
        return None


def _load(base: str | Path, dtype: str | None, settings: Settings) -> tuple[Any, torch.dtype]:
    """The model to fine-tune, and the type that its weights are stored in."""
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"The weights of {str(base)!r} could not be loaded: {str(error).splitlines()[0]}"
        ) from error
    stored = model.dtype
    # A step of 3e-5 is lost in bfloat16 weights, and float16 overflows without a scaler.
    narrow = settings.lora is None or stored == torch.float16
    model.to(getattr(torch, dtype or ("float32" if narrow else str(stored).split(".")[1])))
    return model, stored


def _provenance(source: Published) -> dict[str, Any]:
    return {"file": source.name, "rows": len(source), "held_out": source.held_out}


def _kept(work: Path) -> Any:
    what = "The checkpoint could not be written"
    return disk_errors(what, f"The training is in {work}: type the same command again")


def _quiet(_line: str) -> None:
    pass
