"""Rows of the tiny world: vectors with their texts, their labels and the target's next tokens."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nnsight_nla.evaluation.grounding.rows import GroundedRow, GroundedRows
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import held_out_pairs


def tiny_rows(
    model, *, documents: int, per_document: int = 3, seed: int = 0, noise: float = 0.0
) -> GroundedRows:
    """Rows of held-out pairs of the world, document by document.

    Args:
        model: The tiny target.
        documents: How many documents.
        per_document: Positions of each.
        seed: Of documents, positions and noise.
        noise: The largest norm of what is added to a vector, as a multiple of its own; each row
            gets a share of it by chance.
    """
    pairs = sorted(held_out_pairs())
    found = collect(model, pairs, documents=documents, per_document=per_document, seed=seed)
    likely = _next(model, found.prompts)
    rows = [
        GroundedRow(
            document=f"seed {seed}, document {number // per_document}",
            text=text,
            position=len(model.tokenizer(text, add_special_tokens=False)["input_ids"]) - 1,
            next_tokens=tokens,
            label=label,
        )
        for number, (text, label, tokens) in enumerate(
            zip(found.prompts, found.explanations, likely, strict=True)
        )
    ]
    generator = torch.Generator().manual_seed(seed)
    added = torch.randn(found.vectors.shape, generator=generator)
    added *= (found.vectors.norm(dim=-1) / added.norm(dim=-1))[:, None]
    added *= noise * torch.rand(len(rows), 1, generator=generator)
    return GroundedRows(tuple(rows), found.vectors + added, f"tiny rows {seed}")


def write_rows(source: GroundedRows, file: Path, **more: list) -> Path:
    """Write rows as `nnsight-nla extract` and a labelling do."""
    records = [
        {
            "activation_vector": vector.tolist(),
            "detokenized_text_truncated": row.text,
            "doc_id": row.document,
            "position": row.position,
            "next_tokens": list(row.next_tokens),
            "api_explanation": row.label,
            **{name: values[number] for name, values in more.items()},
        }
        for number, (row, vector) in enumerate(zip(source.rows, source.vectors, strict=True))
    ]
    pq.write_table(pa.Table.from_pylist(records), file, row_group_size=64)
    return file


def _next(model, texts: tuple[str, ...]) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for start in range(0, len(texts), 200):
        with torch.no_grad(), model.trace(list(texts[start : start + 200])):
            likely = model.lm_head.output[:, -1].topk(3).indices.save()
        found += [tuple(model.tokenizer.decode([i]) for i in row) for row in likely.tolist()]
    return found
