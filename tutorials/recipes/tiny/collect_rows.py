"""Step 3: collect the rows that AV and AR are trained on, and measure the baseline.

A row is a residual of the target at block K with its gold explanation, in the schema of published
data sets (``prompt``, ``response``, ``activation_vector``). Both models learn from the same rows:
the AV from vector to text, the AR from text to vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from nnsight import TransformersModel

from nnsight_nla import Baseline
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE, MARKER_SLOT
from nnsight_nla.checkpoint.reply import wrap
from nnsight_nla.tiny.examples import Examples, K, collect
from nnsight_nla.tiny.facts import training_pairs
from nnsight_nla.training import INJECT, Row

PER_DOCUMENT = 3
"""How many positions are drawn from each document."""


def collect_rows(target: Path, documents: int) -> list[Row]:
    """Read documents about the training pairs with the target, and return their rows.

    Args:
        target: The folder of the trained target.
        documents: How many documents to draw; each gives `PER_DOCUMENT` rows.
    """
    model = TransformersModel(
        str(target), task="text-generation", dispatch=True, dtype=torch.float32
    )
    pairs = training_pairs()
    examples = collect(model, pairs, documents=documents, per_document=PER_DOCUMENT, seed=100)
    return as_rows(examples)


def as_rows(examples: Examples) -> list[Row]:
    """Return examples as training rows."""
    content = AV_TEMPLATE.replace(MARKER_SLOT, INJECT)
    prompt = [{"role": "user", "content": content}]
    return [
        Row(prompt=prompt, response=wrap(text), activation_vector=vector)
        for vector, text in zip(examples.vectors, examples.explanations, strict=True)
    ]


def measure_baseline(rows: Iterable[Row]) -> Baseline:
    """Measure the denominator of the pair's FVEs, over all training vectors."""
    vectors = (torch.as_tensor(row["activation_vector"]) for row in rows)
    return Baseline.from_vectors(vectors, name=f"block {K} in texts of nnsight_nla.tiny.documents")
