"""Build the tiny pair and its oracle from scratch, then measure them: an hour on two cores.

    python -m tutorials.recipes.tiny.build [--out DIR]

Each step is a file of this folder; the README walks through them. The build fails when a figure of
the new pair is out of its bounds (`bounds.BOUNDS`).

Seeds are fixed. Another version of torch or another number of threads sums in another order, so the
weights come out different and the figures about the same.
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

from nnsight_nla import tiny
from nnsight_nla.tiny.examples import K
from nnsight_nla.training import describe

from .bounds import out_of_bounds
from .collect_rows import collect_rows, measure_baseline
from .evaluate import measure
from .oracle import ANSWERING, READING, train_oracle
from .oracle_figures import record_oracle
from .tables import markdown
from .train_pair import AR_SETTINGS, AV_SETTINGS, train_ar, train_av
from .train_target import TargetSettings, train_target
from .train_tokenizer import MARKER, train_tokenizer

BASE_MODEL = "nnsight_nla/tiny/weights/target"
"""The target's name in the sidecars."""
DOCUMENTS = 6000
"""How many documents the training rows are drawn from."""
TARGET_SETTINGS = TargetSettings()


def build(out: Path, report: Callable[[str], None]) -> dict[str, Any]:
    """Train target, AV and AR, save them, and measure what was saved.

    Args:
        out: The folder in which ``weights/{target,av,ar}`` and ``figures.json`` are written.
        report: Called with lines of progress.

    Returns:
        The figures.
    """
    torch.set_num_threads(2)
    folders = tiny.paths(out / "weights")
    tokenizer = train_tokenizer()
    target = train_target(tokenizer, TARGET_SETTINGS, report=report)
    # Cast before the rows are collected, so that AV and AR learn from the weights that ship.
    target.half().save_pretrained(folders["target"])
    tokenizer.save_pretrained(folders["target"])

    rows = collect_rows(folders["target"], DOCUMENTS)
    report(f"rows: {len(rows)} residuals with their explanations")
    checkpoint = describe(
        tokenizer,
        layer=K,
        d_model=target.config.hidden_size,
        base_model=BASE_MODEL,
        marker=MARKER,
    )
    checkpoint = replace(checkpoint, baseline=measure_baseline(rows))
    train_av(folders, tokenizer, rows, checkpoint, AV_SETTINGS, report=report)
    train_ar(folders, tokenizer, rows, checkpoint, AR_SETTINGS, report=report)

    train_oracle(folders, BASE_MODEL, READING, ANSWERING, report=report)

    model, nla = tiny.load(out / "weights")
    record_oracle(model, out)
    figures = measure(model, nla)
    text = json.dumps(figures, indent=1) + "\n"
    (out / "figures.json").write_text(text, encoding="utf-8")
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Build the pair and print its figures; return 1 when one is out of its bounds."""
    from transformers.utils import logging

    parser = argparse.ArgumentParser(
        prog="python -m tutorials.recipes.tiny.build",
        description="Build the tiny pair from scratch, then measure it.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tiny.__file__).parent,
        help="where weights/ and figures.json are written (default: over the shipped ones)",
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
