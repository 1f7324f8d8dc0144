"""Tell whether the result of a training is there already, and keep other files safe from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.checkpoint import Checkpoint
from .files import Files, Log
from .rows import TrainingError
from .saving import read_sidecar
from .work_folder import digest, is_taken, made_by_train


@dataclass(frozen=True)
class Trained:
    """A finished training."""

    folder: Path
    """The checkpoint."""
    checkpoint: Checkpoint
    """Its settings, as in its sidecar."""
    log: Log
    """Losses and figures, by step."""


def check_name(out: Path) -> None:
    """Raise if the folder of a new checkpoint holds something that no training made."""
    if is_taken(out) and made_by_train(out) is None:
        raise TrainingError(f"{out} exists. Choose another out=, or remove it.")


def finished(
    out: Path, options: dict[str, Any], files: Files, checkpoint: Path | None = None
) -> Trained | None:
    """Return the training that has this result already; ``None`` if there is something to do.

    Args:
        out: The result.
        options: The options of this call.
        files: The work folder.
        checkpoint: The checkpoint in `out`; `out` itself unless given.

    Raises:
        TrainingError: `out` is something else, or a training whose state is gone and that was asked
            for more steps.
    """
    if not is_taken(out):
        return None
    note, asked = made_by_train(out), options["steps"]
    if note is None or note["options"] != digest(options):
        raise TrainingError(f"{out} exists. Choose another out=, or remove it.")
    done = note["steps"]
    if files.last() is not None and not done == files.steps(asked) >= asked:
        return None
    if done < asked and not note.get("stopped"):
        raise TrainingError(
            f"{out} is finished, after {done} steps, and its state was removed, so it cannot be "
            "continued. Choose another out=. To continue a finished training later, keep its "
            "state: Watching(keep=True)."
        )
    where = checkpoint or out
    return Trained(out, Checkpoint.load(where), list(read_sidecar(where).get("training_log") or []))


def check_still_free(out: Path, work: Path, options: dict[str, Any]) -> None:
    """Raise if something else took the name of the checkpoint while the training ran."""
    note = made_by_train(out)
    if is_taken(out) and (note is None or note["options"] != digest(options)):
        raise TrainingError(
            f"{out} appeared while this training ran. Move it. {saved_by_next_call(work)}"
        )


def saved_by_next_call(work: Path) -> str:
    """Return what to do about a training whose result could not be written."""
    return f"The training is in {work}: rerun with the original options to save it."


def wait_for_all() -> None:
    """Wait until every process of this training is here."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
