"""Steps 4 and 5: fine-tune the target into the AV, and its first blocks into the AR.

Both use `nnsight_nla.training`, which trains AV and AR of any model. The AV learns to write a row's
explanation from its vector, which is written at the marker. The AR learns to predict the vector
from the explanation; it keeps blocks 0 to K and a linear head on the last token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from nnsight_nla import Checkpoint
from nnsight_nla.training import (
    Row,
    Settings,
    save_reconstructor,
    save_verbalizer,
    train_reconstructor,
    train_verbalizer,
)

from .collect_rows import PER_DOCUMENT

AV_SETTINGS = Settings(steps=900, batch_size=32, learning_rate=2e-3)
AR_SETTINGS = Settings(steps=1100, batch_size=32, learning_rate=1.5e-3)


def train_av(
    folders: dict[str, Path],
    tokenizer: Any,
    rows: Sequence[Row],
    checkpoint: Checkpoint,
    settings: Settings = AV_SETTINGS,
    *,
    report: Callable[[str], None],
) -> None:
    """Fine-tune the target into a verbalizer and save it, with its sidecar, in float16.

    Args:
        folders: The folders of target, AV and AR, as `nnsight_nla.tiny.paths` returns them.
        tokenizer: The target's tokenizer.
        rows: The training rows.
        checkpoint: What the sidecar will say.
        settings: Steps and rates.
        report: Called with lines of progress.
    """
    av = train_verbalizer(
        _target(folders),
        tokenizer,
        rows,
        checkpoint,
        settings,
        report=lambda line: report(f"verbalizer: {line}"),
    )
    entries = _sidecar_entries(rows)
    save_verbalizer(folders["av"], av, tokenizer, checkpoint, dtype=torch.float16, **entries)


def train_ar(
    folders: dict[str, Path],
    tokenizer: Any,
    rows: Sequence[Row],
    checkpoint: Checkpoint,
    settings: Settings = AR_SETTINGS,
    *,
    report: Callable[[str], None],
) -> None:
    """Fine-tune the target into a reconstructor and save it, like `train_av`."""
    ar = train_reconstructor(
        _target(folders),
        tokenizer,
        rows,
        checkpoint,
        settings,
        report=lambda line: report(f"reconstructor: {line}"),
    )
    entries = _sidecar_entries(rows)
    save_reconstructor(folders["ar"], ar, tokenizer, checkpoint, dtype=torch.float16, **entries)


def _target(folders: dict[str, Path]) -> Any:
    """Load the saved target as a plain model to fine-tune."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folders["target"], dtype=torch.float32)


def _sidecar_entries(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return the sidecar's entry on the training data."""
    documents = len(rows) // PER_DOCUMENT
    source = f"{documents} texts of nnsight_nla.tiny.documents"
    return {"trained_on": [f"{len(rows)} residuals of the target in {source}"]}
