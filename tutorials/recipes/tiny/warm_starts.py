"""Make what reinforcement learning starts from: rows of the world, and two verbalizers to improve.

The *noisy* verbalizer is the shipped one with noise on its weights, until it is right about one
slot in three. The *short* one was trained as the shipped one was, for a fraction of the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from nnsight_nla import Checkpoint, tiny
from nnsight_nla.checkpoint.sidecar import DATASET_SUFFIX
from nnsight_nla.tiny.examples import Examples, collect
from nnsight_nla.tiny.facts import training_pairs
from nnsight_nla.training import Settings, save_verbalizer, train_verbalizer

from .collect_rows import PER_DOCUMENT, as_rows

NOISE = 0.55
"""The noise on each matrix, as a multiple of its standard deviation."""
SHORT = Settings(steps=440, batch_size=16, learning_rate=2e-3, final_rate=1.0)
"""The shipped verbalizer was trained for 900 steps of twice as many rows, at a rate that falls."""


def write_rows(model: Any, file: Path, *, documents: int, per_document: int = 6) -> Path:
    """Write vectors of training pairs, with their texts and true explanations.

    Args:
        model: The tiny target.
        file: The Parquet file.
        documents: How many texts.
        per_document: How many positions of each.
    """
    found = collect(model, training_pairs(), documents=documents, per_document=per_document, seed=5)
    likely = _next_tokens(model, found)
    records = [
        {
            "activation_vector": vector.tolist(),
            "doc_id": f"document {number // per_document}",
            "position": len(model.tokenizer(text)["input_ids"]) - 1,
            "detokenized_text_truncated": text,
            "next_tokens": tokens,
            "api_explanation": label,
        }
        for number, (vector, text, label, tokens) in enumerate(
            zip(found.vectors, found.prompts, found.explanations, likely, strict=True)
        )
    ]
    pq.write_table(pa.Table.from_pylist(records), file)
    checkpoint = Checkpoint.load(tiny.paths()["av"])
    sidecar = {**checkpoint.to_sidecar("av"), "kind": "nla_dataset"}
    del sidecar["role"]
    file.with_name(file.name + DATASET_SUFFIX).write_text(
        yaml.safe_dump(sidecar, allow_unicode=True), encoding="utf-8"
    )
    return file


def noisy(folder: Path, noise: float = NOISE) -> Path:
    """Save the shipped verbalizer with noise on its matrices."""
    model, tokenizer = _load(tiny.paths()["av"])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                draw = torch.randn(weight.shape, generator=generator)
                weight.add_(draw * weight.std() * noise)
    save_verbalizer(folder, model, tokenizer, Checkpoint.load(tiny.paths()["av"]))
    return folder


def short(folder: Path, model: Any, report: Callable[[str], None] | None = None) -> Path:
    """Train a verbalizer from the target for a few steps only, and save it."""
    found = collect(model, training_pairs(), documents=2000, per_document=PER_DOCUMENT, seed=100)
    target, tokenizer = _load(tiny.paths()["target"])
    checkpoint = Checkpoint.load(tiny.paths()["av"])
    av = train_verbalizer(target, tokenizer, as_rows(found), checkpoint, SHORT, report=report)
    save_verbalizer(folder, av, tokenizer, checkpoint)
    return folder


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def _next_tokens(model: Any, examples: Examples) -> list[list[str]]:
    """Return the three tokens that the target expects after each text."""
    found: list[list[str]] = []
    for start in range(0, len(examples), 200):
        with torch.no_grad(), model.trace(list(examples.prompts[start : start + 200])):
            likely = model.lm_head.output[:, -1].topk(3).indices.save()
        found += [[model.tokenizer.decode([token]) for token in row] for row in likely.tolist()]
    return found
