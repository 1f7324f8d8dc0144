"""Remake the shipped pair from nothing but this code: under half an hour on two cores.

The target learns the world; its residuals beside their gold explanations are the rows that the
verbalizer and the reconstructor learn from, by the same `training` that serves any model. Then
everything is measured, and the build fails when a figure is out of its bounds
(`evaluate.BOUNDS`).

    python -m nnsight_nla.tiny.build [--out DIR]

Seeds are fixed. Another torch, or another number of threads, sums in another order and ends at
other weights with about the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core.baseline import Baseline
from ..training import (
    Row,
    Settings,
    describe,
    save_reconstructor,
    save_verbalizer,
    train_reconstructor,
    train_verbalizer,
)
from . import load, paths
from .evaluate import FIGURES, markdown, measure, out_of_bounds
from .examples import collect
from .facts import training_pairs
from .target import K, TargetSettings, train_target
from .tokenizer import MARKER, train_tokenizer

BASE_MODEL = "nnsight_nla/tiny/weights/target"
"""The target's name in the sidecars."""
DOCUMENTS = 6000
"""How many documents the rows of both halves are drawn from."""

TARGET_SETTINGS = TargetSettings()
AV_SETTINGS = Settings(steps=900, batch_size=32, learning_rate=2e-3)
AR_SETTINGS = Settings(steps=1100, batch_size=32, learning_rate=1.5e-3)

Report = Callable[[str], None]


def build(out: Path, report: Report) -> dict[str, Any]:
    """Train target, verbalizer and reconstructor, save them, and measure what was saved.

    Args:
        out: Gets ``weights/{target,av,ar}`` and ``figures.json``.
        report: Called with lines of progress.

    Returns:
        The figures.
    """
    torch.set_num_threads(2)
    where = paths(out / "weights")
    tokenizer = train_tokenizer()
    target = train_target(tokenizer, TARGET_SETTINGS, report=report)
    # Rounded here, so that what the pair is trained on is what ships.
    target.half().save_pretrained(where["target"])
    tokenizer.save_pretrained(where["target"])
    checkpoint = describe(
        tokenizer,
        layer=K,
        d_model=target.config.hidden_size,
        base_model=BASE_MODEL,
        marker=MARKER,
    )
    rows = training_rows(where["target"])
    report(f"rows: {len(rows)} residuals with their explanations")
    checkpoint = replace(checkpoint, baseline=measured_baseline(rows))
    entries = {"dtype": torch.float16, "trained_on": [_provenance(len(rows))]}
    av = train_verbalizer(
        _base(where["target"]),
        tokenizer,
        rows,
        checkpoint,
        AV_SETTINGS,
        report=lambda line: report(f"verbalizer: {line}"),
    )
    save_verbalizer(where["av"], av, tokenizer, checkpoint, **entries)
    ar = train_reconstructor(
        _base(where["target"]),
        tokenizer,
        rows,
        checkpoint,
        AR_SETTINGS,
        report=lambda line: report(f"reconstructor: {line}"),
    )
    save_reconstructor(where["ar"], ar, tokenizer, checkpoint, **entries)
    figures = measure(*load(out / "weights"))
    text = json.dumps(figures, indent=1) + "\n"
    (out / FIGURES.name).write_text(text, encoding="utf-8")
    return figures


def measured_baseline(rows: Sequence[Row]) -> Baseline:
    """The denominator of the pair's FVEs, and its natural scale: over all that it learns from."""
    vectors = (torch.as_tensor(row["activation_vector"]) for row in rows)
    return Baseline.from_vectors(vectors, name=f"block {K} in texts of nnsight_nla.tiny.documents")


def training_rows(target: Path) -> list[Row]:
    """What both halves learn from: residuals of the target beside their gold explanations."""
    from nnsight import TransformersModel

    model = TransformersModel(
        str(target), task="text-generation", dispatch=True, dtype=torch.float32
    )
    return collect(model, training_pairs(), documents=DOCUMENTS, seed=100).training_rows()


def _base(target: Path) -> Any:
    """The target once more, as a plain model to fine-tune."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)


def _provenance(rows: int) -> str:
    return f"{rows} residuals of the target in {DOCUMENTS} texts of nnsight_nla.tiny.documents"


def main(arguments: Sequence[str] | None = None) -> int:
    """Build and print the figures; 1 when one is out of its bounds."""
    from transformers.utils import logging

    parser = argparse.ArgumentParser(prog="python -m nnsight_nla.tiny.build")
    parser.add_argument(
        "--out", type=Path, default=FIGURES.parent, help="default: over the shipped weights"
    )
    options = parser.parse_args(arguments)
    logging.disable_progress_bar()
    start = time.monotonic()

    def report(line: str) -> None:
        sys.stdout.write(f"{(time.monotonic() - start) / 60:5.1f} min  {line}\n")
        sys.stdout.flush()

    figures = build(options.out, report)
    report("done")
    complaints = out_of_bounds(figures)
    sys.stdout.write("\n".join((markdown(figures), *complaints)) + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
