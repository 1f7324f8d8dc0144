"""Measure checkpoints on the held-out rows of a published file.

Held-out rows are of documents that the training of the checkpoint did not see. Its sidecar records
the file and the share of documents that were held out; measuring a larger share is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint import sidecar
from ..checkpoint.reply import extract
from ..evaluation.evaluate import Figures, evaluate
from .published import HELD_OUT, Published
from .rows import TrainingError, checked_batches

if TYPE_CHECKING:
    from ..nla import NLA


def measure(
    rows: str | Path,
    pairs: dict[str, NLA],
    *,
    held_out: float = HELD_OUT,
    limit: int | None = 200,
    seed: int = 0,
) -> dict[str, Figures]:
    """Measure each NLA on the same rows.

    Args:
        rows: A published file.
        pairs: The `NLA` of each verbalizer, by the verbalizer's folder or Hub id.
        held_out: The share of documents that training held out; 1 measures the whole file.
        limit: The largest number of rows.
        seed: Seed of the controls.

    Returns:
        The figures of `evaluate.evaluate`, by name.

    Raises:
        TrainingError: The rows do not fit a pair, or it was trained on some of them.
    """
    part = "all" if held_out >= 1 else "held out"
    source = Published(rows, part=part, held_out=held_out, limit=limit)
    figures: dict[str, Figures] = {}
    for name, nla in pairs.items():
        _check(source, name, nla)
        vectors, labels = _rows(source, nla)
        figures[name] = evaluate(nla, vectors, labels, seed=seed)
    return figures


def _rows(source: Published, nla: NLA) -> tuple[Tensor, list[str]]:
    batches = list(checked_batches(source, nla.checkpoint, prompts=False))
    labels = [extract(each)[0] for batch in batches for each in batch.responses]
    return torch.cat([batch.vectors for batch in batches]), labels


def _check(source: Published, name: str, nla: NLA) -> None:
    layer = source.meta.get("layer")
    if layer not in (None, nla.checkpoint.layer):
        raise TrainingError(
            f"The vectors of {source.file} are from layer {layer} (by its sidecar); {name} reads "
            f"layer {nla.checkpoint.layer}."
        )
    share = _held_out_of(source, name)
    if share is not None and (source.part == "all" or share < source.held_out):
        raise TrainingError(
            f"{name} was trained on {source.name} with {share:g} of the documents held out, so a "
            f"share of {source.held_out:g} includes documents that it was trained on. Pass "
            f"held_out={share:g}."
        )


def _held_out_of(source: Published, name: str) -> float | None:
    """Return the share that the training of `name` held out, if it trained on this file."""
    found = (Path(name).expanduser() / each for each in sidecar.SIDECARS)
    file = next((each for each in found if each.is_file()), None)
    meta = sidecar.read(file) if file else {}
    trained_on = meta.get("trained_on") if isinstance(meta, dict) else None
    for entry in trained_on if isinstance(trained_on, list) else []:
        if isinstance(entry, dict) and entry.get("file") == source.name:
            return float(entry.get("held_out", 0))
    return None
