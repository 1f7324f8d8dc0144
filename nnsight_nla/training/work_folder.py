"""The folder ``OUT.training`` of a running training: one process at a time, one set of options.

It holds the options (`begun.json`), a lock that the operating system releases when its holder dies,
and the trainer's newest checkpoints. A call with the same options resumes there; options are
compared by content, so a training goes on where its files were moved, and is refused where a row
or a weight was changed under the same name. What is finished, or has nothing to resume from, is
removed; nothing else in the folder is.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..models.fingerprint import Unchanged, fingerprint_base, fingerprint_file
from ..storage.atomic import atomic_file, remove_leftovers, write_errors
from ..storage.lock import locked
from .files import Files, Report
from .published import Published
from .rows import TrainingError
from .saving import read_sidecar, trained_on

# The options of a training; the name is that of earlier versions.
_OPTIONS, _LOCK = "begun.json", "lock"
_ADVICE = "Choose another out=."
# Options that are written down only if the best step is kept, see `Watching.fixed`.
_OF_THE_BEST = ("best", "measured_rows", "max_new_tokens", "reconstructor")


def identify(rows: Published, base: str | Path) -> dict[str, Any]:
    """Return the contents that a training depends on, as hashes.

    From now on, `rows` raises where the file is found changed after it was read to its end.
    """
    found = fingerprint_file(rows.file)
    rows.unchanged = Unchanged(rows.file, found)
    return {
        "rows": f"{found['bytes']} bytes, blake2b {found['blake2b']}",
        "held_out": rows.held_out,
        "base": fingerprint_base(base),
    }


def digest(options: Mapping[str, Any]) -> str:
    """Return a name for everything that a training depends on but its number of steps."""
    fixed = {name: value for name, value in options.items() if name != "steps"}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def is_main_process() -> bool:
    """Return whether this process reports and writes: the first of several, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_taken(out: Path) -> bool:
    """Return whether a file, or a folder with something in it, has the name of the checkpoint."""
    return out.is_file() or (out.is_dir() and any(out.iterdir()))


def made_by_train(out: Path) -> dict[str, Any] | None:
    """Return what a checkpoint of `train` was trained on; ``None`` for anything else."""
    # Reinforcement learning puts its verbalizer into a folder below.
    entry = next(iter(trained_on(out) or trained_on(out / "av")), {})
    return entry if {"options", "steps"} <= set(entry) else None


def recorded_date(work: Path, out: Path) -> str | None:
    """Return the date in the prompt of an earlier call's training; ``None`` if there is none."""
    file = work / _OPTIONS
    if file.is_file():
        return json.loads(file.read_text("utf-8")).get("date")
    training = read_sidecar(out).get("training")
    return training.get("prompt_date") if isinstance(training, dict) else None


@contextmanager
def work_folder(work: Path, out: Path) -> Generator[None, None, None]:
    """Hold the folder while the block runs.

    Args:
        work: The folder; it is created if needed.
        out: The name of the checkpoint. What a killed process left of writing it is removed.

    Raises:
        TrainingError: Another process holds the folder, it is not a training's, or it cannot be
            made.
    """
    if not is_main_process():
        work.mkdir(parents=True, exist_ok=True)
        yield  # The first process of this training holds it.
        return
    if work.is_file() or (work.is_dir() and not _is_ours(work)):
        raise TrainingError(
            f"{work} exists and is not the work folder of a training. Move it, or choose another "
            "out=."
        )
    with write_errors(work, advice=_ADVICE, error=TrainingError):
        work.mkdir(parents=True, exist_ok=True)
    busy = f"Another process is training {out}. Wait for it, end it, or choose another out=."
    with locked(work / _LOCK, busy=busy, advice=_ADVICE, error=TrainingError):
        remove_leftovers(out)
        try:
            yield
        finally:
            if Files(work, 1).last() is None:
                remove(work)


def remove(work: Path) -> None:
    """Delete what `train` and the trainer wrote, and the folder if nothing else is in it."""
    for pattern in ("checkpoint-*", "vectors-*", f".{_OPTIONS}.*.tmp", _OPTIONS, _LOCK):
        for each in work.glob(pattern):
            if each.is_dir():
                shutil.rmtree(each, ignore_errors=True)
            else:
                with suppress(OSError):
                    each.unlink()
    with suppress(OSError):  # Something else is in it.
        work.rmdir()


def start_or_resume(
    files: Files,
    options: dict[str, Any],
    rows: Published,
    base: str | Path,
    report: Report | None,
) -> None:
    """Write down the options of a training, or compare them with those that it started with.

    Args:
        files: The work folder.
        options: The options of this call.
        rows: The rows, to compare with what earlier versions wrote down.
        base: The base model, likewise.
        report: Called with a line that says where the training resumes.

    Raises:
        TrainingError: The folder holds a training with other options.
    """
    file, last = files.folder / _OPTIONS, files.last()
    if file.is_file() and last is not None:
        original = json.loads(file.read_text("utf-8"))
        _check_same(files.folder, original, _as_written(original, options, rows, base))
        if report is not None:
            before, now = original.get("steps"), options["steps"]
            changed = f" instead of {before}" if before != now else ""
            report(f"resuming: {files.steps(now)} steps are done, of {now}{changed}")
    if is_main_process():
        with atomic_file(file, advice=_ADVICE, error=TrainingError) as stream:
            stream.write(json.dumps(options, indent=1).encode())


def _is_ours(work: Path) -> bool:
    names = {each.name for each in work.iterdir()}
    return not names or bool(names & {_OPTIONS, _LOCK})


def _as_written(
    original: dict[str, Any], options: dict[str, Any], rows: Published, base: str | Path
) -> dict[str, Any]:
    """Return the options in the form in which this training's version wrote them."""
    original.setdefault("role", original.get("half"))  # Its name in earlier versions.
    if "held_out" in original:
        return options
    # Earlier versions knew rows and base by their names.
    size = rows.file.stat().st_size
    named = f"{rows.file.absolute()}, {size} bytes, {rows.held_out:g} held out"
    kept = {name: value for name, value in options.items() if name != "held_out"}
    return {**kept, "rows": named, "base": str(base)}


def _check_same(work: Path, original: dict[str, Any], options: dict[str, Any]) -> None:
    differs = [
        f"{name}={original.get(name)!r} (now {value!r})"
        for name, value in {**dict.fromkeys(_OF_THE_BEST), **options}.items()
        if name != "steps" and original.get(name) != value
    ]
    if differs:
        raise TrainingError(
            f"{work} holds a training with other options. Rerun with the original options to "
            f"resume: {', '.join(differs)}. Or remove that folder to start again."
        )
