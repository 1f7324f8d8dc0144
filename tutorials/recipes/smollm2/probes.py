"""Ask how much of the subject a vector holds: train a network to name it.

    python -m tutorials.recipes.smollm2.probes WORK     two minutes; adds to the figures

The verbalizer names the subject by reading one vector. A two-layer network that is trained on the
same rows, for nothing else, shows how much of it can be read there at all.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from nnsight_nla.evaluation import read_rows

from .evaluate import FIGURES, group_of
from .sources import subject_of

EPOCHS, RATE, DECAY, HIDDEN = 12, 1e-3, 0.75, 1024


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the network and add it to the shipped figures."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.probes")
    parser.add_argument("work", type=Path, help="the folder that build made")
    work: Path = parser.parse_args(arguments).work
    train, held = (read_rows(work / f"{part}.rows.parquet") for part in ("train", "held_out"))
    figures = json.loads(FIGURES.read_text("utf-8"))
    figures["network"] = probe(
        train.vectors,
        [row.document for row in train.rows],
        held.vectors,
        [row.document for row in held.rows],
    )
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(figures["network"], indent=1) + "\n")


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
