"""Ask how much of the subject a residual holds: train a network to name it, at several blocks.

    python -m tutorials.recipes.smollm2.probes WORK     a quarter of an hour; adds to the figures

The verbalizer names the subject by reading one vector. A two-layer network that is trained on the
same rows, for nothing else, shows how much of it can be read there at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from nnsight_nla.smollm2 import target

from .evaluate import FIGURES, group_of
from .sources import subject_of

BLOCKS = (8, 12, 16, 20, 23, 26)
EPOCHS, RATE, DECAY, HIDDEN = 8, 1e-3, 0.75, 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the probes and add them to the shipped figures."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.probes")
    parser.add_argument("work", type=Path, help="the folder that build made")
    work: Path = parser.parse_args(arguments).work
    train, train_documents = read(work / "train.rows.parquet")
    held, held_documents = read(work / "held_out.rows.parquet")
    figures = json.loads(FIGURES.read_text("utf-8"))
    figures["probes"] = {
        str(block): probe(train[block], train_documents, held[block], held_documents)
        for block in BLOCKS
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(figures["probes"], indent=1) + "\n")


def read(file: Path) -> tuple[dict[int, Tensor], list[str]]:
    """Read all blocks at the rows' positions; return a vector per row and its document."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = target.converted()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    rows = pq.read_table(file, columns=["doc_id", "detokenized_text_truncated"]).to_pylist()
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["doc_id"], []).append(row["detokenized_text_truncated"])
    found: dict[int, list[Tensor]] = {block: [] for block in BLOCKS}
    documents: list[str] = []
    for document, prefixes in sorted(texts.items()):
        prefixes.sort(key=len)
        ids = tokenizer(prefixes[-1], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = model.model(ids, output_hidden_states=True).hidden_states
        for prefix in prefixes:
            place = len(tokenizer(prefix)["input_ids"]) - 1
            if place < ids.shape[1]:
                documents.append(document)
                for block in BLOCKS:
                    found[block].append(states[block + 1][0, place].float())
    return {block: torch.stack(each) for block, each in found.items()}, documents


def probe(
    train: Tensor, train_documents: Sequence[str], held: Tensor, held_documents: Sequence[str]
) -> dict[str, float]:
    """Train a network to name the subject; return the share that is right, by kind of source."""
    torch.manual_seed(0)
    names = sorted({subject_of(each) for each in train_documents})
    index = {name: number for number, name in enumerate(names)}
    known = torch.tensor([index[subject_of(each)] for each in train_documents])
    true = torch.tensor([index.get(subject_of(each), -1) for each in held_documents])
    train, held = (nn.functional.normalize(each, dim=-1) for each in (train, held))
    mean, spread = train.mean(0), train.std(0)
    train, held = (train - mean) / spread, (held - mean) / spread
    network = nn.Sequential(
        nn.Dropout(0.2), nn.Linear(train.shape[-1], HIDDEN), nn.GELU(), nn.Dropout(0.3),
        nn.Linear(HIDDEN, len(names)),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=0.1)
    for _ in range(EPOCHS):
        network.train()
        for batch in torch.randperm(len(train)).split(512):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                network(train[batch]), known[batch], label_smoothing=0.05
            )
            loss.backward()
            optimizer.step()
        for each in optimizer.param_groups:
            each["lr"] *= DECAY
    network.eval()
    with torch.no_grad():
        right = network(held).argmax(-1) == true
    kinds = [group_of(each) for each in held_documents]
    found = {"all": float(right.float().mean())}
    for kind in sorted(set(kinds)):
        chosen = torch.tensor([each == kind for each in kinds])
        found[kind] = float(right[chosen].float().mean())
    return found


if __name__ == "__main__":
    main()
