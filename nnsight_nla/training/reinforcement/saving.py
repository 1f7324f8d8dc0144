"""Save what reinforcement learning made: verbalizer, reconstructor and log, all at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ...core.baseline import Baseline
from ...storage.atomic import atomic_folder
from ..files import Log
from ..result import saved_by_next_call
from ..rows import TrainingError
from ..saving import read_sidecar, save_reconstructor, save_verbalizer
from .pair import Pair

LOG = "log.json"
"""The file with the figures of every step."""


def save_pair(
    out: Path,
    pair: Pair,
    log: Log,
    baseline: Baseline | None,
    entry: dict[str, Any],
    av: str | Path,
    save_dtype: str | None,
) -> None:
    """Write the folder of a finished training; it replaces one of that name in one step.

    Args:
        out: The folder.
        pair: The models. What was trained is cast to the dtype that it is saved in.
        log: The figures by step; those that were measured on held-out rows go into the sidecars.
        baseline: The denominator of the FVE.
        entry: What this training was, for sidecars and model cards.
        av: The warm start, which has entries of its own.
        save_dtype: See `rl`.

    Raises:
        TrainingError: The disk is full.
    """
    advice = saved_by_next_call(out.with_name(f"{out.name}.training"))
    dtype = None if save_dtype is None else getattr(torch, save_dtype)
    extra: dict[str, Any] = {
        "trained_on": [entry, *_earlier(av)],
        "training_log": [line for line in log if any(name.startswith("eval_") for name in line)],
        "advice": advice,
    }
    checkpoint = replace(pair.checkpoint, baseline=baseline)
    with atomic_folder(out, advice=advice, error=TrainingError) as part:
        save_verbalizer(
            part / "av", pair.policy, pair.nla.av.tokenizer, checkpoint,
            dtype=dtype or pair.av_stored, stage="av_rl", **extra,
        )  # fmt: skip
        if pair.reconstructor is not None:
            described = replace(
                checkpoint,
                ar_template=pair.judge.template,
                ar_suffix_ids=pair.opened.layout.suffix_ids or checkpoint.ar_suffix_ids,
            )
            save_reconstructor(
                part / "ar", pair.reconstructor, pair.opened.tokenizer, described,
                dtype=dtype or pair.ar_stored, stage="ar_rl", **extra,
            )  # fmt: skip
        (part / LOG).write_text(json.dumps(log), encoding="utf-8")


def _earlier(av: str | Path) -> list[Any]:
    """Return what the warm start was trained on."""
    listed = read_sidecar(Path(av).expanduser()).get("trained_on")
    return listed if isinstance(listed, list) else []
