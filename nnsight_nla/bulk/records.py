"""The rows of a finished run: one per vector and sample, and one per row that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..checkpoint.reply import snippets
from ..core.similarity import cosine
from ..errors import ReconstructionError
from .residuals import Found
from .sources import VECTOR

if TYPE_CHECKING:
    from ..explanation.handle import Explanation

CONTEXT = 200
"""How many characters up to the token a row shows."""


def schema(d_model: int, *, vectors: bool) -> pa.Schema:
    """The columns of a run.

    Args:
        d_model: The residual's width.
        vectors: Whether each row carries its vector, as the published data sets do.
    """
    fields = [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("position", pa.int64()),
        pa.field("token", pa.string()),
        pa.field("context", pa.string()),
        pa.field("norm", pa.float32()),
        pa.field("sample", pa.int32(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("snippets", pa.list_(pa.string())),
        pa.field("finish", pa.string()),
        pa.field("score", pa.float32()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
    ]
    if vectors:
        fields.append(pa.field(VECTOR, pa.list_(pa.float32(), d_model)))
    return pa.schema(fields)


def rows(found: Found, thoughts: Explanation | None, seed: int) -> list[dict[str, Any]]:
    """The records of one row of the input, without scores.

    Args:
        found: What was read.
        thoughts: Its resolved explanations, ``None`` where nothing could be read.
        seed: Of the sampling.
    """
    blank = {"doc_id": found.item.doc_id, "sample": 0, "seed": seed}
    if thoughts is None:
        return [] if found.item.error is None else [{**blank, "error": found.item.error}]
    errors, capture = thoughts.errors, thoughts._capture
    norms = found.vectors.norm(dim=-1).tolist()
    notes = thoughts.warnings
    records: list[dict[str, Any]] = []
    for place, position in enumerate(found.positions):
        read = found.read[place]
        here = {
            **blank,
            "position": position,
            "token": found.tokens[place],
            "context": None if read is None else read[-CONTEXT:],
            "norm": norms[place],
            VECTOR: found.vectors[place].numpy(),
        }
        if (place,) in errors:
            records.append({**here, "error": f"its vector {errors[place,]}"})
            continue
        for sample in range(capture.samples):
            reply = capture.replies[place, sample]
            records.append(
                {
                    **here, "sample": sample, "text": reply.text, "finish": reply.finish,
                    "snippets": list(snippets(reply.text)), "warnings": list(notes[place]),
                }
            )  # fmt: skip
    return records


def table(records: Sequence[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Records as a table of these columns; what a record lacks is null."""
    arrays = [
        pa.array([record.get(field.name) for record in records], field.type) for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def add_scores(records: Sequence[dict[str, Any]], reconstruct: Any) -> None:
    """Set each record's round-trip cosine, where its text can be turned back into a vector.

    Args:
        records: With their vectors.
        reconstruct: Texts to vectors.
    """
    import torch

    told = [record for record in records if (record.get("text") or "").strip()]
    for record, vector in zip(told, _reconstructed(told, reconstruct), strict=True):
        if vector is not None:
            here = torch.from_numpy(record[VECTOR])
            record["score"] = cosine(vector, here).item()


def _reconstructed(told: Sequence[dict[str, Any]], reconstruct: Any) -> list[Any]:
    texts = [record["text"] for record in told]
    if not texts:
        return []
    try:
        return list(reconstruct(texts))
    except ReconstructionError:  # One of them is too long, or has tags inside: the others count.
        return [_one(text, reconstruct) for text in texts]


def _one(text: str, reconstruct: Any) -> Any:
    try:
        return reconstruct([text])[0]
    except ReconstructionError:
        return None
