"""Train from a published file of rows to a folder that ``NLA(path)`` loads.

Mistakes are found before they cost anything: the name of the folder, the rows' sidecar against the
base model's tokenizer and shape, then every row; only then are weights loaded. The state of a
running training is in the folder ``OUT.training``, which one process at a time may use; rerun with
the same options to resume from it. Rows, base model and tokenizer are compared by content. The
checkpoint gets its name when it is complete, and the work folder is removed::

    trained = train("av", "rows.parquet", base="Qwen/Qwen3-8B", out="checkpoints/av")
    NLA(trained.folder)

Only `Settings.steps` may change: more steps continue a training, fewer end it early, with the
checkpoint of a step that is done. With `Watching.keep` the state of a finished training stays, so
that it can be continued too. The learning rate then follows the schedule of the new number.

With `Watching.best` the checkpoint has the weights of the measured step that was best by a figure,
the last step included. A training is always continued from its newest state, not from the best.
One that is ended early keeps the best of the steps up to there whose state is still saved: the
newest and the best one are. `best` itself may not change, nor what it is measured with (rows,
longest reply, reconstructor): other states are gone, and other figures cannot be compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..core.baseline import Baseline
from ..core.injection import Injection
from ..errors import ReconstructionError
from ..models.loading import check_dtype
from ..models.weights import load_module
from ..progress import progress
from .compatibility import check_attention, compatible_checkpoint, read_base
from .files import Files, Log, Report
from .published import HELD_OUT, Published
from .question_rows import checked_questions
from .reconstructor import train_reconstructor
from .result import (
    Trained,
    check_name,
    check_still_free,
    finished,
    saved_by_next_call,
    wait_for_all,
)
from .rows import checked_batches
from .saving import check_save_dtype, save_reconstructor, save_verbalizer
from .settings import Settings
from .trainer import check_precision
from .verbalizer import train_verbalizer
from .watching import Role, Watching, check_watching, read_held_out, to_measure
from .work_folder import (
    digest,
    identify,
    is_main_process,
    recorded_date,
    remove,
    start_or_resume,
    work_folder,
)


def train(
    role: Role,
    rows: str | Path,
    *,
    base: str | Path,
    out: str | Path,
    settings: Settings = Settings(),  # noqa: B008  (frozen)
    watching: Watching = Watching(),  # noqa: B008  (frozen)
    layer: int | None = None,
    base_name: str | None = None,
    injection: Injection | None = None,
    held_out: float = HELD_OUT,
    dtype: str | None = None,
    save_dtype: str | None = None,
    attention: str | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a verbalizer, an oracle or a reconstructor from a Parquet file of rows.

    On several devices a process runs on each, with a copy of the model and its share of the
    batches, and the first one reports and writes: ``torchrun --nproc-per-node 4 --no-python
    nnsight-nla train ...``, or ``accelerate launch`` around a script that calls `train`.

    Args:
        role: ``"av"``, the verbalizer, or ``"ar"``, the reconstructor. The verbalizer of rows with
            the columns ``question``, ``answer`` and ``activation_vectors`` is an oracle; that of
            explanations of ``activation_vectors`` has a marker for each.
        rows: The file, with its sidecar; `Published` says which columns it has.
        base: The model to start from, usually the target: a folder or a Hub id.
        out: The folder of the checkpoint, with its model card, ``README.md``. Nothing of that name
            exists yet, unless it is the result of this same call, which is then returned.
        settings: Steps, rates, batches, adapters.
        watching: What to measure during training.
        layer: K, if the rows have no sidecar that names it.
        base_name: The name of `base` in the rows' sidecar, if it is another.
        injection: How vectors are written; the sidecar's, or norm-matched addition at block 1.
        held_out: The share of documents that are not trained on.
        dtype: The dtype to load the weights in: by default float32 if all are trained, and as
            stored under adapters (float32 for float16).
        save_dtype: The dtype to save what was trained in: ``"float32"``, ``"bfloat16"`` or
            ``"float16"``; by default float32 for adapters, else as `base` is stored.
        attention: The implementation of attention, such as ``"eager"`` or ``"sdpa"``; by default
            transformers' choice, or ``"eager"`` for a base that caps its attention scores.
        report: Called with lines of progress.

    Raises:
        TrainingError: Something does not fit; the message names file and row. Or the disk is full.
        CheckpointError: The sidecar, the tokenizer or the base cannot be read.
    """
    report = report if is_main_process() else None
    out = Path(out).expanduser().absolute()
    out = out.resolve() if out.is_symlink() else out
    check_name(out)
    check_dtype({"dtype": dtype}, quantized=False)
    check_save_dtype(save_dtype)
    check_precision(settings.precision)
    work = out.with_name(f"{out.name}.training")
    part = "train" if held_out else "all"
    source = Published(rows, part=part, held_out=held_out, scratch=work)
    check_watching(watching, role, rows, held_out)
    tokenizer, checkpoint = compatible_checkpoint(
        source, base, layer, base_name, injection, recorded_date(work, out)
    )
    check_attention(base, attention)
    identity = identify(source, base)
    undated = repr(replace(checkpoint, date=None)).encode()
    options = {
        "role": role,
        **identity,
        "checkpoint": hashlib.sha256(undated).hexdigest()[:16],
        "date": checkpoint.date,
        "dtype": dtype,
        "attention": attention,
        **asdict(settings),
        **watching.fixed(),
    }
    files = Files(work, watching.every, watching.tensorboard)
    with work_folder(work, out):
        result = finished(out, options, files)
        if result is None:
            start_or_resume(files, options, source, base, report)
            if report is not None:
                report(f"rows: {len(source):,} of {source.name} to train on")
            some = read_held_out(source, checkpoint, role, watching, report)
            checkpoint = replace(checkpoint, baseline=_baseline(source, checkpoint, role))
            held = None if some is None else to_measure(some, base, checkpoint, role, watching)
            if report is not None:
                report(f"loading the weights of {base}")
            model, stored = _load(base, dtype, attention, settings)
            log: Log = []
            train_role: Callable[..., Any] = (
                train_verbalizer if role == "av" else train_reconstructor
            )
            trained = train_role(
                model, tokenizer, source, checkpoint, settings,
                report=report, held_out=held, files=files, log=log,
            )  # fmt: skip
            entry = {
                "file": source.name,
                "rows": len(source),
                "held_out": held_out,
                "blake2b": identity["rows"].split()[-1],
                "steps": files.steps(settings.steps),
                "options": digest(options),
                **_kept(log, watching.best),
            }
            narrow = stored if settings.lora is None else None
            wait_for_all()  # No other process writes to the work folder any more.
            if is_main_process():
                check_still_free(out, work, options)
                save: Callable[..., None] = save_verbalizer if role == "av" else save_reconstructor
                save(
                    out, trained, tokenizer, checkpoint,
                    advice=saved_by_next_call(work),
                    trained_on=[entry],
                    training_log=log,
                    dtype=narrow if save_dtype is None else getattr(torch, save_dtype),
                )  # fmt: skip
            result = Trained(out, checkpoint, log)
        if is_main_process() and not watching.keep:
            remove(work)
    wait_for_all()  # The checkpoint exists when any process returns.
    return result


def _kept(log: Log, best: str | None) -> dict[str, Any]:
    """Return which step was kept, and by which figure, if it was the best of several."""
    steps = [int(line["step"]) for line in log if "kept" in line]
    return {"kept_step": steps[-1], "kept_by": best} if steps else {}


def _baseline(source: Published, checkpoint: Checkpoint, role: Role) -> Baseline | None:
    """Check every row, and measure the FVE's denominator over the training rows.

    Returns:
        ``None`` if it cannot be measured: one row, or all rows of one direction; or the rows have
        several vectors, of which there is no reconstructor.
    """
    if checkpoint.asks:
        with progress("reading rows", total=len(source), unit="row") as bar:
            for batch in checked_questions(source, checkpoint):
                bar.advance(len(batch))
        return None
    if checkpoint.slots > 1:
        with progress("reading rows", total=len(source), unit="row") as bar:
            for rows in checked_batches(source, checkpoint, prompts=True):
                bar.advance(len(rows.names))
        return None
    name = f"block {checkpoint.layer} in {source.name}"
    with progress("reading rows", total=len(source), unit="row") as bar:

        def vectors() -> Iterator[Tensor]:
            for batch in checked_batches(source, checkpoint, prompts=role == "av"):
                yield batch.vectors
                bar.advance(len(batch.names))

        try:
            return Baseline.from_vectors(vectors(), name=name)
        except ReconstructionError:
            return None


def _load(
    base: str | Path, dtype: str | None, attention: str | None, settings: Settings
) -> tuple[Any, torch.dtype]:
    """Load the model to fine-tune; return it and the dtype that its weights are stored in."""
    from transformers import AutoModelForCausalLM

    options = {"dtype": "auto", **({} if attention is None else {"attn_implementation": attention})}
    model = read_base("weights", base, partial(load_module, AutoModelForCausalLM), **options)
    stored = model.dtype
    # bfloat16 weights lose a step of 3e-5, and float16 overflows without a scaler.
    narrow = settings.lora is None or stored == torch.float16
    model.to(getattr(torch, dtype or ("float32" if narrow else str(stored).split(".")[1])))
    return model, stored
