"""The rows that `run` writes: one per vector and sample, and one per row that cannot be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from ..checkpoint.reply import snippets
from ..core.answer_trust import NAMES
from ..core.similarity import cosine
from ..errors import TextError
from ..evaluation.answer_controls import unchanged
from ..explanation.handle import of_question
from .residuals import ItemResiduals
from .sources import VECTOR, VECTORS

if TYPE_CHECKING:
    from ..explanation.handle import Explanation

Reconstruct = Callable[[list[str]], torch.Tensor]
CONTEXT = 200
"""How many characters of the text, up to the token, a row shows."""
CONTROLS = {name: f"answer_{name}" for name in NAMES}
"""The controls of an answer (see `AnswerTrust`), and the columns of what they answer."""
UNCHANGED = "unchanged"
"""The column of the controls that give the same answer."""


def schema(
    d_model: int, *, vectors: bool, asks: bool = False, controls: bool = False, slots: int = 1
) -> pa.Schema:
    """Return the columns that `run` writes.

    Args:
        d_model: The residual's width.
        vectors: Whether each row has its vector, as in the published data sets.
        asks: Whether rows are answers: they have their question, and the vectors of its slots.
        controls: Whether they have the answers of the controls.
        slots: The number of vectors of each explanation.
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
        pa.field("reconstruction_cosine", pa.float32()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("error", pa.string()),
        pa.field("seed", pa.int64(), nullable=False),
    ]
    if asks:
        fields += [
            pa.field("question", pa.string()),
            pa.field("slots", pa.int32()),
            pa.field("probabilities", pa.map_(pa.string(), pa.float64())),
            pa.field("mass", pa.float64()),
        ]
    if controls:
        fields += [pa.field(column, pa.string()) for column in CONTROLS.values()]
        fields.append(pa.field(UNCHANGED, pa.list_(pa.string())))
    if vectors:
        vector = pa.list_(pa.float32(), d_model)
        several = asks or slots > 1
        fields.append(pa.field(VECTORS, pa.list_(vector)) if several else pa.field(VECTOR, vector))
    return pa.schema(fields)


def make_records(
    found: ItemResiduals,
    explanations: Explanation | None,
    seed: int,
    more: Sequence[str] = (),
    controls: Mapping[int, Mapping[str, str]] | None = None,
) -> list[dict[str, Any]]:
    """Return the records of one row of the input, without scores.

    Args:
        found: The row and its residuals.
        explanations: Their resolved explanations, ``None`` where nothing could be read.
        seed: The seed of the sampling.
        more: Warnings on every text, in addition to its own.
        controls: What the controls answer, by position and control.
    """
    blank = {"doc_id": found.item.doc_id, "sample": 0, "seed": seed}
    if explanations is None:
        return [] if found.item.error is None else [{**blank, "error": found.item.error}]
    errors, capture = explanations.errors, explanations.capture
    norms = found.vectors.norm(dim=-1)
    norms = (norms if norms.ndim == 1 else norms.mean(dim=-1)).tolist()
    notes = explanations.warnings
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
            VECTORS: list(found.vectors[place].reshape(-1, found.vectors.shape[-1]).numpy()),
            **of_question(capture, place, None),
        }
        if (place,) in errors:
            records.append({**here, "error": f"its vector {errors[place,]}"})
            continue
        for sample in range(capture.samples):
            reply = capture.replies[place, sample]
            records.append(
                {
                    **here, "sample": sample, "text": reply.text, "finish": reply.finish,
                    "snippets": list(snippets(reply.text)), "warnings": [*more, *notes[place]],
                    **of_question(capture, place, reply),
                    **({} if controls is None else _control_fields(reply.text, controls[place])),
                }
            )  # fmt: skip
    return records


def _control_fields(text: str, said: Mapping[str, str]) -> dict[str, Any]:
    fields: dict[str, Any] = {column: said.get(name) for name, column in CONTROLS.items()}
    return {**fields, UNCHANGED: list(unchanged(text, said))}


def to_table(records: Sequence[dict[str, Any]], columns: pa.Schema) -> pa.Table:
    """Convert records to a table of these columns; a missing value is null."""
    arrays = [
        pa.array([record.get(field.name) for record in records], field.type) for field in columns
    ]
    return pa.Table.from_arrays(arrays, schema=columns)


def add_scores(records: Sequence[dict[str, Any]], reconstruct: Reconstruct) -> None:
    """Set each record's round-trip cosine, where its text can be reconstructed.

    Args:
        records: Records with their vectors.
        reconstruct: Turns texts into vectors.
    """
    told = [record for record in records if (record.get("text") or "").strip()]
    vectors = _reconstructed([record["text"] for record in told], reconstruct)
    for record, vector in zip(told, vectors, strict=True):
        if vector is not None:
            near = cosine(vector, torch.from_numpy(record[VECTOR])).item()
            record["reconstruction_cosine"] = near


def _reconstructed(texts: list[str], reconstruct: Reconstruct) -> list[torch.Tensor | None]:
    try:
        return list(reconstruct(texts)) if texts else []
    except TextError:  # One text is too long, or has tags inside: try each alone.
        if len(texts) == 1:
            return [None]
        return [vector for text in texts for vector in _reconstructed([text], reconstruct)]
