"""Measure a verbalizer's texts against the texts that their vectors were read in.

The figures are those of `evaluation.grounding`, by names that begin with ``grounded_``. Each
function here returns a `Several`: a function from texts, labels and vectors to figures by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.reply import extract
from ..core.similarity import cosine
from ..errors import NLAError
from ..evaluation.grounding.rows import (
    DOCUMENT,
    LABEL,
    TEXT,
    VECTOR,
    GroundedRow,
    GroundedRows,
    from_records,
)
from ..evaluation.score import score
from .held_out import Figures, Several
from .published import Published

PREFIX = "grounded_"
"""What the names of these figures begin with."""
SOURCE = f"{PREFIX}source"
"""The share of texts whose reconstruction is closest to their own vector, of four documents'."""
_CANDIDATES = 4
_COLUMNS = (VECTOR, TEXT, DOCUMENT, LABEL, "position", "next_tokens", "next_probabilities")


def grounded_rows(source: Published, d_model: int) -> list[GroundedRow]:
    """Return the texts of the rows of `source`, with the labels that a training learns from.

    The file is read one batch at a time, as it may be larger than the memory.

    Raises:
        NLAError: A row has no text.
    """
    longest: dict[str, str] = {}
    whole = Published(source.file, part=source.part, held_out=source.held_out)
    for _, record in whole.records([DOCUMENT, TEXT]):
        text, document = record[TEXT] or "", str(record.get(DOCUMENT))
        if len(text) > len(longest.get(document, "")):
            longest[document] = text
    records: list[dict[str, Any]] = []
    for number, record in source.records(_COLUMNS):
        if record[TEXT] is None:
            raise NLAError(
                f"{source.file}, row {number} has no {TEXT!r}, the text that its vector was read "
                "in. `nnsight-nla extract` writes it."
            )
        records.append(record)
    rows = from_records(records, source.name, longest).rows
    labels = [extract(each)[0] for batch in source.batches(d_model) for each in batch.responses]
    return [
        row if row.label else replace(row, label=label)
        for row, label in zip(rows, labels, strict=True)
    ]


def by_text(rows: Sequence[GroundedRow]) -> Several:
    """Return a function that compares texts with these rows."""

    def measure(texts: list[str], _labels: list[str], _vectors: Tensor) -> Figures:
        from ..evaluation.grounding.text_figures import text_figures

        return {PREFIX + name: value for name, value in text_figures(texts, rows).items()}

    return measure


def can_match(documents: Sequence[str]) -> bool:
    """Return whether there are enough documents for `SOURCE`."""
    return len(set(documents)) >= _CANDIDATES


def by_reconstruction(
    base: str | Path, ar: str | Path, checkpoint: Checkpoint, documents: Sequence[str] | None
) -> Several:
    """Return a function that measures texts by what a reconstructor makes of them.

    A reply that is not proper counts as a cosine of 0, and as a wrong answer for `SOURCE`. Each
    text is reconstructed once; the verbalizer of the reconstructor's NLA is never loaded.

    Args:
        base: The target.
        ar: The reconstructor.
        checkpoint: The verbalizer's, with the baseline of the FVE.
        documents: The document of each vector, for `SOURCE`; ``None`` leaves it out.
    """
    from ..nla import NLA

    load: dict[str, Any] = {"device_map": "auto"} if torch.cuda.is_available() else {}
    nla = NLA(base, ar=ar, checkpoint=checkpoint, dtype="auto", **load)

    def measure(texts: list[str], _labels: list[str], vectors: Tensor) -> Figures:
        different = list(dict.fromkeys(filter(str.strip, texts)))
        found = dict(zip(different, nla.reconstruct(different), strict=True)) if different else {}

        def back(these: Sequence[str]) -> Tensor:
            return torch.stack([found[text] for text in these])

        failed = {n: "the reply is not proper" for n, text in enumerate(texts) if not text.strip()}
        over = checkpoint.baseline
        scores = score(back, texts, vectors, failed, baseline=over, failures="zero")
        figures = {"fve": scores.mean["fve"]}
        if documents is not None:
            figures |= _source_match(back, texts, documents, vectors)
        return figures

    return measure


def _source_match(
    back: Any, texts: Sequence[str], documents: Sequence[str], vectors: Tensor
) -> Figures:
    from ..evaluation.grounding.matching import match

    # Only the documents count here, and `match` wants their texts to differ.
    rows = tuple(GroundedRow(document, document) for document in documents)

    def scores(these: Sequence[str], candidates: Tensor) -> Tensor:
        return cosine(back(these), candidates.float().cpu())

    told = [text if text.strip() else None for text in texts]
    held = GroundedRows(rows, vectors.float().cpu())
    right = match("source", told, held, range(len(texts)), scores)
    return {} if right is None else {SOURCE: right.value}
