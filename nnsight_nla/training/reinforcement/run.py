"""Train a warm start by reinforcement learning, from a file of vectors to folders that load.

The checkpoint of the verbalizer is ``OUT/av``; that of the reconstructor, if it is trained too, is
``OUT/ar``, and ``OUT/log.json`` has the figures of every step. All of it appears at once, when it
is complete. The state of a running training is in ``OUT.training``; rerun with the same options to
resume from it. As in `training.train`, only the number of steps may change: more continue a
training, fewer end it early, with the checkpoint of a step that is done::

    rl("av", "rows.parquet", ar="ar", out="rl")
    NLA("rl/av", ar="rl/ar")

Bad input is refused before weights are loaded, as far as that is possible. What goes wrong later
stops the training with the figure that shows it; the newest checkpoint stays in ``OUT.training``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ...checkpoint.checkpoint import Checkpoint
from ...core.baseline import Baseline
from ...errors import ReconstructionError
from ...models.fingerprint import fingerprint_base
from ...models.loading import check_dtype
from ...storage.function_hash import hash_function
from ..best import CHECKPOINT, best_of, saved_steps
from ..files import Files, Log, Report
from ..published import HELD_OUT, Published
from ..result import check_name, check_still_free, finished, wait_for_all
from ..rows import TrainingError
from ..saving import check_save_dtype, trained_on
from ..trainer import check_precision
from ..work_folder import digest, identify, is_main_process, remove, start_or_resume, work_folder
from .held_out import read_held_out
from .loop import Loop
from .oversight import Oversight, check_figures
from .pair import check_one_target, open_pair
from .reward import Reward
from .rollout_engine import check_engine
from .saving import LOG, save_pair
from .settings import RLSettings, RLWatching
from .state import load_state, load_weights, remove_parts
from .vectors import Vectors


@dataclass(frozen=True)
class Reinforced:
    """A finished training."""

    folder: Path
    """What was written: ``av``, ``ar`` if the reconstructor was trained, and ``log.json``."""
    checkpoint: Checkpoint
    """The verbalizer's settings, as in its sidecar."""
    log: Log
    """Figures by step: of the draws, by their names, and on held-out rows, with ``eval_``."""
    stopped: str | None = None
    """Which of the conditions to stop at was met; ``None`` if all steps were taken."""

    @property
    def av(self) -> Path:
        """The verbalizer's checkpoint."""
        return self.folder / "av"

    @property
    def ar(self) -> Path | None:
        """The reconstructor's checkpoint; ``None`` if it was frozen."""
        return self.folder / "ar" if (self.folder / "ar").is_dir() else None


def rl(
    av: str | Path,
    rows: str | Path,
    *,
    ar: str | Path,
    out: str | Path,
    settings: RLSettings = RLSettings(),  # noqa: B008  (frozen)
    watching: RLWatching = RLWatching(),  # noqa: B008  (frozen)
    rewards: Mapping[str, Reward] | None = None,
    held_out: float = HELD_OUT,
    dtype: str | None = None,
    save_dtype: str | None = None,
    vllm: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Reinforced:
    """Train a verbalizer so that a reconstructor recovers the vector from its texts.

    On several devices a process runs on each, with a copy of the models and its share of each
    step's vectors: ``torchrun --nproc-per-node 4 --no-python nnsight-nla train rl ...``.

    Args:
        av: The warm start's verbalizer: a folder or a Hub id, of a whole model or an adapter.
        rows: A Parquet file of vectors, with its sidecar; it needs no labels.
        ar: The warm start's reconstructor, likewise.
        out: The folder of the result. Nothing of that name exists yet, unless it is the result of
            this same call, which is then returned.
        settings: Steps, draws, rates, rewards' weights.
        watching: What to measure, when to stop, what to keep.
        rewards: Rewards of your own, by name, mixed with the reconstruction's.
        held_out: The share of documents that are not trained on.
        dtype: The dtype to load the weights in: by default float32 where all are trained, and as
            stored under adapters.
        save_dtype: The dtype to save what was trained in; by default float32 for adapters, else
            that of the warm start.
        vllm: For ``RLSettings(engine="vllm")``: keyword arguments of vLLM's ``LLM``. The models
            that are trained are on the same GPU, so leave them room:
            ``{"gpu_memory_utilization": 0.4}``.
        report: Called with lines of progress.

    Raises:
        TrainingError: Something does not fit, or a step teaches nothing; the message has the
            figure. Or the disk is full.
        CheckpointError: A checkpoint cannot be read, or the two are of another layer or width.
    """
    report = report if is_main_process() else None
    out = Path(out).expanduser().absolute()
    out = out.resolve() if out.is_symlink() else out
    check_name(out)
    check_dtype({"dtype": dtype}, quantized=False)
    check_save_dtype(save_dtype)
    check_precision(settings.precision)
    check_engine(settings, vllm, av, int(os.environ.get("WORLD_SIZE", "1")))
    own = dict(rewards or {})
    work = out.with_name(f"{out.name}.training")
    source = Published(rows, part="train" if held_out else "all", held_out=held_out, scratch=work)
    checkpoint = Checkpoint.load(av)
    check_one_target(av, checkpoint, ar)
    source.origin.check(checkpoint, str(rows), insist=None, error=TrainingError)
    identity = identify(source, av)
    options = {
        "role": "rl",
        **identity,
        "reconstructor_weights": fingerprint_base(ar),
        "dtype": dtype,
        "rewards": {
            name: [each.weight, hash_function(each.function, stateful=True)]
            for name, each in own.items()
        },
        **asdict(settings),
        **watching.fixed(),
    }
    files = Files(work, watching.every, watching.tensorboard)
    with work_folder(work, out):
        before = finished(out, options, files, out / "av")
        if before is None:
            start_or_resume(files, options, source, av, report)
            loop, oversight = _prepared(
                av, ar, source, checkpoint, settings, watching, own, files, dtype, vllm, report
            )
            try:
                _train(loop, oversight, files)
            finally:
                loop.pair.close()
            entry = {
                "file": source.name,
                "rows": len(source),
                "held_out": held_out,
                "blake2b": identity["rows"].split()[-1],
                "stage": "reinforcement learning",
                "steps": files.steps(settings.steps),
                "options": digest(options),
                **oversight.outcome(),
            }
            wait_for_all()
            if is_main_process():
                check_still_free(out, work, options)
                save_pair(out, loop.pair, loop.log, oversight.baseline, entry, av, save_dtype)
            result = Reinforced(out, loop.pair.checkpoint, loop.log, oversight.stopped)
        else:
            log = json.loads((out / LOG).read_text("utf-8"))
            stopped = trained_on(out / "av")[0].get("stopped")
            result = Reinforced(out, before.checkpoint, log, stopped)
        if is_main_process() and not watching.keep:
            remove(work)
    wait_for_all()  # The result exists when any process returns.
    return result


def _prepared(
    av: str | Path,
    ar: str | Path,
    source: Published,
    checkpoint: Checkpoint,
    settings: RLSettings,
    watching: RLWatching,
    own: dict[str, Reward],
    files: Files,
    dtype: str | None,
    vllm: Mapping[str, Any] | None,
    report: Report | None,
) -> tuple[Loop, Oversight]:
    """Read vectors, check the names of figures, and load the models."""
    vectors = Vectors(source, checkpoint.d_model, settings.seed)
    if report is not None:
        report(f"rows: {len(vectors):,} of {source.name} to train on")
    rows = read_held_out(source, checkpoint.d_model, watching, report)
    baseline = checkpoint.baseline or _baseline(vectors, checkpoint, source)
    stops = check_figures(watching, settings, own, rows, fve=baseline is not None)
    if report is not None:
        report(f"loading the weights of {av} and {ar}")
    processes = PartialState(cpu=not torch.accelerator.is_available())
    pair = open_pair(av, ar, settings, device=processes.device, dtype=dtype, vllm=vllm)
    loop = Loop(pair, vectors, settings, own, processes)
    return loop, Oversight(loop, rows, baseline, watching, stops, files, report)


def _train(loop: Loop, oversight: Oversight, files: Files) -> None:
    """Resume, take the steps that are left, and load the best weights if they are to be kept."""
    remove_parts(files)
    last = files.last(loop.settings.steps)
    if last is not None:
        loop.log[:] = load_state(last, loop.pair, loop.optimizers)
    with oversight:
        if last is None:
            oversight.start()
        loop.run(files.steps(loop.settings.steps), oversight)
    wait_for_all()  # The first process has written its last checkpoint.
    best = oversight.watching.best
    found = None if best is None else best_of(loop.log, best, saved_steps(files.folder))
    if found is not None:
        load_weights(files.folder / f"{CHECKPOINT}{found.step}", loop.pair)
        next(line for line in loop.log if line["step"] == found.step)["kept"] = 1.0
    oversight.kept = found


def _baseline(vectors: Vectors, checkpoint: Checkpoint, source: Published) -> Baseline | None:
    """Measure the FVE's denominator; ``None`` for one vector, or vectors of one direction."""
    name = f"block {checkpoint.layer} in {source.name}"
    try:
        return Baseline.from_vectors(vectors.all.split(1024), name=name)
    except ReconstructionError:
        return None
