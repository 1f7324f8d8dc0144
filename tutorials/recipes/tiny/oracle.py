"""Step 6: train the oracle, an adapter on the target that answers questions about residuals.

    python -m tutorials.recipes.tiny.oracle [--out DIR]

Its rows are questions with answers (`nnsight_nla.tiny.questions`) about residuals of two blocks, of
one token or of three adjacent ones. `nnsight_nla.training` trains an oracle as it trains a
verbalizer; with adapters, the oracle ships as a megabyte and shares the target's weights.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nnsight import TransformersModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.tiny.examples import K, collect
from nnsight_nla.tiny.facts import held_out_pairs, training_pairs
from nnsight_nla.tiny.questions import LAYERS, WINDOW, Asked, descriptions, questions
from nnsight_nla.training import (
    HeldOut,
    Lora,
    QuestionRow,
    Settings,
    describe,
    save_verbalizer,
    train_verbalizer,
)

MARKER = "?"
"""The token of the slots. The tiny tokenizer splits the published " ?"."""
DOCUMENTS = 2500
"""How many documents are read at each block, with one token, and again with three."""
READING = Settings(steps=600, batch_size=32, learning_rate=2e-3, lora=Lora(rank=32, alpha=32))
"""First, most questions ask for a description, whose many words teach to read the vectors."""
ANSWERING = Settings(steps=1000, batch_size=64, learning_rate=1.5e-3)
"""Then, most ask for one fact, which teaches to tell the questions apart."""


def train_oracle(
    folders: dict[str, Path],
    base_model: str,
    reading: Settings = READING,
    answering: Settings = ANSWERING,
    *,
    report: Callable[[str], None],
) -> None:
    """Train the oracle on the saved target and save it, with its sidecar, in float16.

    Args:
        folders: The folders of target and oracle, as `nnsight_nla.tiny.paths` returns them.
        base_model: The target's name in the sidecar.
        reading: Steps, rates and adapters of the first part.
        answering: Steps and rates of the second.
        report: Called with lines of progress.
    """
    tokenizer = AutoTokenizer.from_pretrained(folders["target"])
    for name in ("is_local", "local_files_only"):  # How it was loaded here is not part of it.
        tokenizer.init_kwargs.pop(name, None)
    target = TransformersModel(
        str(folders["target"]), task="text-generation", dispatch=True, dtype=torch.float32
    )
    pairs = sorted(training_pairs())
    some = collect_questions(target, sorted(held_out_pairs()), 12, seed=7, described=0)
    checkpoint = describe(
        tokenizer,
        layer=K,
        layers=LAYERS,
        d_model=target.config.hidden_size,
        base_model=base_model,
        marker=MARKER,
        template=ORACLE_TEMPLATE,
        ar_template=None,
    )
    oracle: Any = AutoModelForCausalLM.from_pretrained(folders["target"], dtype=torch.float32)
    count = 0
    for settings, described, asked, seed in (
        (reading, 1, 1, 300),
        (answering, 0.2, 3, 400),
    ):
        rows = collect_questions(
            target, pairs, DOCUMENTS, seed=seed, described=described, per_example=asked
        )
        report(f"rows: {len(rows)} questions about residuals")
        oracle = train_verbalizer(
            oracle,
            tokenizer,
            list(map(as_row, rows)),
            checkpoint,
            settings,
            held_out=HeldOut(list(map(as_row, some)), every=settings.steps // 4),
            report=lambda line: report(f"oracle: {line}"),
        )
        count += len(rows)
    oracle.peft_config["default"].base_model_name_or_path = base_model
    said = f"{count} questions about residuals of the target in {8 * DOCUMENTS} texts"
    entries: dict[str, Any] = {
        "stage": "oracle_sft",
        "trained_on": [f"{said} of nnsight_nla.tiny.documents"],
    }
    save_verbalizer(
        folders["oracle"], oracle, tokenizer, checkpoint, dtype=torch.float16, **entries
    )


def collect_questions(
    target: Any,
    pairs: Any,
    documents: int,
    *,
    per_example: int = 2,
    described: float,
    seed: int,
) -> list[Asked]:
    """Read documents at each block, one token and several at a time, and ask about them.

    Args:
        target: The target, an nnsight model.
        pairs: The subjects and tones of the documents.
        documents: How many to read at each block, for each number of tokens.
        per_example: The number of questions about one fact of each example.
        described: The share of examples of which a description is asked for, too.
        seed: The seed of everything that is drawn.
    """
    found: list[Asked] = []
    for number, (layer, window) in enumerate((k, w) for k in LAYERS for w in (1, WINDOW)):
        examples = collect(
            target, pairs, documents=documents, seed=seed + number, layer=layer, window=window
        )
        found += questions(examples, seed=seed + number, layer=layer, per_example=per_example)
        found += descriptions(examples, layer=layer)[: round(described * len(examples))]
    return found


def as_row(asked: Asked) -> QuestionRow:
    """Return a question as a training row."""
    return QuestionRow(
        question=asked.text,
        answer=asked.answer,
        activation_vectors=asked.vectors,
        layer=asked.layer,
    )


def main(arguments: list[str] | None = None) -> int:
    """Train the oracle of the shipped target, or of one that `build` made elsewhere."""
    from .build import BASE_MODEL

    parser = argparse.ArgumentParser(
        prog="python -m tutorials.recipes.tiny.oracle", description="Train the tiny oracle."
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tiny.__file__).parent,
        help="the folder that holds weights/target (default: the shipped one)",
    )
    options = parser.parse_args(arguments)
    start = time.monotonic()

    def report(line: str) -> None:
        sys.stdout.write(f"{(time.monotonic() - start) / 60:5.1f} min  {line}\n")
        sys.stdout.flush()

    train_oracle(tiny.paths(options.out / "weights"), BASE_MODEL, report=report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
