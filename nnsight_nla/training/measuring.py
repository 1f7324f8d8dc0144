"""Measure checkpoints on the held-out rows of a published file.

Held-out rows are of documents that the training of the checkpoint did not see. Its sidecar records
the file and the share of documents that were held out; measuring a larger share is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..checkpoint.origin import Claims
from ..checkpoint.reply import extract
from ..evaluation.evaluate import Figures, evaluate
from ..evaluation.grounding.measure import grounded
from ..evaluation.grounding.rows import read_rows
from ..models.fingerprint import fingerprint_file
from .published import HELD_OUT, Published
from .rows import TrainingError, checked_batches
from .saving import trained_on

if TYPE_CHECKING:
    from ..evaluation.grounding.judge import Judge
    from ..evaluation.grounding.rows import GroundedRows
    from ..nla import NLA


_POSITIONS = 10
"""The most rows of a document that serve as candidates."""


def measure(
    rows: str | Path,
    pairs: dict[str, NLA],
    *,
    held_out: float = HELD_OUT,
    limit: int | None = 200,
    seed: int = 0,
    claims: Claims = "check",
    against_text: bool = False,
    judge: Judge | None = None,
) -> dict[str, Figures]:
    """Measure each NLA on the same rows.

    Args:
        rows: A published file.
        pairs: The `NLA` of each verbalizer, by the verbalizer's folder or Hub id.
        held_out: The share of documents that training held out; 1 measures the whole file.
        limit: The largest number of rows.
        seed: Seed of the controls.
        claims: ``"ignore"`` measures rows that say they are of another model or layer than an NLA
            reads; its figures then say so, as ``claims_ignored``.
        against_text: Whether to compare the explanations with the texts too; the figures of
            `evaluation.grounded` are then under ``grounded``.
        judge: Answers prompts for those figures; see `evaluation.grounding.judge`.

    Returns:
        The figures of `evaluate.evaluate`, by name.

    Raises:
        TrainingError: The rows do not fit a pair, or it was trained on some of them.
        NLAError: The file has no texts, and they are to be compared.
        JudgeError: The judge did not answer.
    """
    part = "all" if held_out >= 1 else "held out"
    source = Published(rows, part=part, held_out=held_out, limit=limit)
    texts = _with_texts(rows, source, held_out) if against_text else None
    figures: dict[str, Figures] = {}
    for name, nla in pairs.items():
        what = f"{source.file}, for {name},"
        ignored = source.origin.check(nla.checkpoint, what, claims=claims, error=TrainingError)
        _check(source, name)
        vectors, labels = _rows(source, nla)
        figures[name] = evaluate(nla, vectors, labels, seed=seed)
        if texts is not None:
            figures[name]["grounded"] = grounded(nla, texts, limit=limit, judge=judge, seed=seed)
        if ignored:
            figures[name]["claims_ignored"] = ignored
    return figures


def _rows(source: Published, nla: NLA) -> tuple[Tensor, list[str]]:
    batches = list(checked_batches(source, nla.checkpoint, prompts=False))
    labels = [extract(each)[0] for batch in batches for each in batch.responses]
    return torch.cat([batch.vectors for batch in batches]), labels


def _with_texts(rows: str | Path, source: Published, held_out: float) -> GroundedRows:
    """Read the documents of the chosen rows, with rows at several positions of each."""
    documents, taken = set(source.documents()), dict[str, int]()
    numbers: list[int] = []
    every = Published(rows, part=source.part, held_out=held_out)
    for number, document in zip(every.numbers(), every.documents(), strict=True):
        if document in documents and taken.get(document, 0) < _POSITIONS:
            taken[document] = taken.get(document, 0) + 1
            numbers.append(number)
    return read_rows(rows, numbers)


def _check(source: Published, name: str) -> None:
    share = _held_out_of(source, name)
    if share is not None and (source.part == "all" or share < source.held_out):
        raise TrainingError(
            f"{name} was trained on {source.name} with {share:g} of the documents held out, so a "
            f"share of {source.held_out:g} includes documents that it was trained on. Pass "
            f"held_out={share:g}."
        )


def _held_out_of(source: Published, name: str) -> float | None:
    """Return the share that the training of `name` held out, if it trained on this file."""
    found = trained_on(Path(name).expanduser())
    content = fingerprint_file(source.file)["blake2b"] if found else None
    for entry in found:
        # Checkpoints of earlier versions know their file by its name.
        same = (
            entry["blake2b"] == content if "blake2b" in entry else entry.get("file") == source.name
        )
        if same:
            return float(entry.get("held_out", 0))
    return None
