"""Checkpoints measured on the held-out rows of a published file, one or two side by side.

Held out means: of documents that the checkpoint's own training did not see. Its sidecar says of
which file it held out what share; measuring a larger share of the same file is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from ..checkpoint.reply import extract
from ..checkpoint.sidecar import SIDECARS
from ..evaluation.evaluate import Figures, evaluate
from .published import HELD_OUT, Published
from .rows import TrainingError, checked


def measure(
    rows: str | Path,
    pairs: dict[str, Any],
    *,
    held_out: float = HELD_OUT,
    limit: int | None = 200,
    seed: int = 0,
) -> dict[str, Figures]:
    """Measure each pair on the same rows.

    Args:
        rows: A published file.
        pairs: The verbalizer's folder or id to its `NLA`.
        held_out: The share of documents that was held out in training; 1 is all of the file.
        limit: The most rows.
        seed: Of the controls.

    Returns:
        Name to the figures of `evaluate.evaluate`.

    Raises:
        TrainingError: The rows do not fit a pair, or it was trained on some of them.
    """
    part: Any = "all" if held_out >= 1 else "held out"
    source = Published(rows, part=part, held_out=held_out, limit=limit)
    figures: dict[str, Figures] = {}
    for name, nla in pairs.items():
        _check(source, name, nla)
        vectors, labels = _rows(source, nla)
        figures[name] = evaluate(nla, vectors, labels, seed=seed)
    return figures


def _rows(source: Published, nla: Any) -> tuple[Tensor, list[str]]:
    batches = list(checked(source, nla.checkpoint, prompts=False))
    labels = [extract(each)[0] for batch in batches for each in batch.responses]
    return torch.cat([batch.vectors for batch in batches]), labels


def _check(source: Published, name: str, nla: Any) -> None:
    layer = source.meta.get("layer")
    if layer not in (None, nla.checkpoint.layer):
        raise TrainingError(
            f"The vectors of {source.file} are from layer {layer}, its sidecar says; {name} reads "
            f"layer {nla.checkpoint.layer}."
        )
    share = _held_out_of(source, name)
    if share is not None and (source.part == "all" or share < source.held_out):
        raise TrainingError(
            f"{name} was trained on {source.name} with {share:g} of the documents held out; "
            f"measured on {source.held_out:g} of them it would be measured on what it has seen. "
            f"Type --held-out {share:g}."
        )


def _held_out_of(source: Published, name: str) -> float | None:
    """The share of this file's documents that the training of `name` left out, if it was its."""
    found = (Path(name).expanduser() / each for each in SIDECARS)
    file = next((each for each in found if each.is_file()), None)
    meta = yaml.safe_load(file.read_text("utf-8")) if file else {}
    for entry in meta.get("trained_on") or []:
        if isinstance(entry, dict) and entry.get("file") == source.name:
            return float(entry.get("held_out", 0))
    return None
