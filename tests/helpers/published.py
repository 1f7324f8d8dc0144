"""A small base model in a folder, and published rows for it, for the tests of training."""

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from transformers import AutoTokenizer

from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE, MARKER_SLOT
from nnsight_nla.tiny import paths
from nnsight_nla.training import INJECT, describe

WIDTH, LAYER = 32, 1
CONTENT = AV_TEMPLATE.replace(MARKER_SLOT, INJECT)
WORDS = ("Paris", "Rome", "cow", "nurse")


def tokenizer():
    return AutoTokenizer.from_pretrained(paths()["target"])


def base(folder: Path, depth: int = 3, width: int = WIDTH) -> Path:
    """A Qwen3 with weights from U(-1, 1)."""
    from tests.training.test_training import random_model

    random_model("Qwen3", tokenizer(), num_hidden_layers=depth, hidden_size=width).save_pretrained(
        folder
    )
    tokenizer().save_pretrained(folder)
    return folder


def records(number: int = 24) -> list[dict]:
    """Two rows a document."""
    generator = torch.Generator().manual_seed(1)
    return [
        {
            "prompt": [{"role": "user", "content": CONTENT}],
            "response": f"<explanation>\nAbout {WORDS[i % 4]}.\n</explanation>",
            "activation_vector": torch.randn(WIDTH, generator=generator).tolist(),
            "doc_id": f"document {i // 2}",
            "activation_layer": LAYER,
        }
        for i in range(number)
    ]


def publish(
    file: Path, rows: list[dict], base_model: str = "base", sidecar: dict | None = None
) -> Path:
    """Write rows as a Parquet file with its sidecar; `sidecar` changes entries (``a.b``: value)."""
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=7)
    checkpoint = describe(tokenizer(), layer=LAYER, d_model=WIDTH, base_model=base_model)
    tree = copy.deepcopy(checkpoint.to_sidecar("av")) | {"kind": "nla_dataset"}
    for place, value in (sidecar or {}).items():
        *parents, leaf = place.split(".")
        node: Any = tree
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    beside = file.with_name(f"{file.name}.nla_meta.yaml")
    beside.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return file
