"""The second stage for SmolLM2: reinforcement learning of the verbalizer, the reconstructor frozen.

    python -m tutorials.recipes.smollm2.rl WORK OUT [--steps N]

It starts from the shipped pair. Its vectors are of the held-out sources, on which neither adapter
was trained, at ten positions of each text; a tenth of these texts is held out of this training too.
WORK is the folder of `tutorials.recipes.smollm2.build`, of which only ``held_out.jsonl`` is needed.

A step takes most of a minute on one processor, so this is a run of hours. It can be killed and
started again. With fewer steps than are done, it ends at the last of those that was saved: every
tenth is.
The figures go into ``tutorials/numbers/reinforcement.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

from nnsight_nla import smollm2
from nnsight_nla.training import RLSettings, RLWatching, rl

from ..rl_figures import curve, record
from .build import link_target, write_rows

STEPS = 400
HELD_OUT = 0.1
"""The share of texts that are not trained on."""
POSITIONS = 10
"""Positions of each text."""


def reinforce(work: Path, out: Path, steps: int, report: Any) -> dict[str, Any]:
    """Train, and return the figures.

    Args:
        work: The folder of the texts.
        out: The folder of the result.
        steps: Updates.
        report: Called with lines of progress.
    """
    settings = RLSettings(
        steps=steps,
        prompts=8,
        draws=8,
        max_new_tokens=80,
        length_margin=16,
        av_rate=2e-4,
        warmup=5,
        reconstructor="freeze",
        batch_size=32,
    )
    link_target(work)
    rows, pair = write_rows(work, "held_out", POSITIONS, "unseen"), smollm2.paths()
    watching = RLWatching(every=10, rows=128, keep=True)
    with chdir(work):  # Where the target has its name on the Hub.
        found = rl(
            pair["av"],
            rows,
            ar=pair["ar"],
            out=out,
            settings=settings,
            watching=watching,
            held_out=HELD_OUT,
            dtype="bfloat16",
            report=report,
        )
    return {
        "settings": {
            name: getattr(settings, name)
            for name in ("prompts", "draws", "max_new_tokens", "av_rate", "kl", "reconstructor")
        },
        "rows": watching.rows,
        "minutes": sum(line.get("seconds", 0.0) for line in found.log) / 60,
        "log": curve(found.log),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train with the folders of the command line, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.rl")
    parser.add_argument("work", type=Path, help="the folder of the texts")
    parser.add_argument("out", type=Path, help="the folder of the result")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"updates (default {STEPS})")
    options = parser.parse_args(arguments)

    def report(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
        sys.stdout.flush()

    figures = reinforce(options.work.resolve(), options.out.resolve(), options.steps, report)
    record("smollm2", figures)
    sys.stdout.write(json.dumps(figures["log"][-1], indent=1) + "\n")


if __name__ == "__main__":
    main()
