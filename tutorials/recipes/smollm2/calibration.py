"""Measure how often SmolLM2's explanations are right, and what its labels say of other vectors.

    python -m tutorials.recipes.smollm2.calibration WORK

The calibration is measured on documents that the training held out of its own sources, and tested
on the sources that were never trained on. It is written into the shipped verbalizer's folder, and
with all figures into ``calibration.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnsight_nla import NLA, Sampling, smollm2
from nnsight_nla.evaluation import (
    GroundedRow,
    GroundedRows,
    from_records,
    grounded,
    over_length,
    read_rows,
)
from nnsight_nla.evaluation.calibrating import calibrate, save, validated
from nnsight_nla.evaluation.grounding.agreement import auc
from nnsight_nla.evaluation.grounding.forms import known_truth
from nnsight_nla.evaluation.grounding.measure import spread
from nnsight_nla.smollm2.explanations import explanation, truth
from nnsight_nla.training.published import Published

from ..grades import grade_shares
from .out_of_distribution import vectors
from .sources import subject_of

FIGURES = Path(smollm2.__file__).parent / "calibration.json"
POPULATION = (
    "residuals of SmolLM2-135M-Instruct, block 23, in English passages like those of the recipe"
)
HELD_OUT = 0.02
"""The share of documents that the training held out, as in `build`."""
ROWS, GROUNDED_ROWS, SAMPLED = 1000, 300, 200
EARLY_DOCUMENTS, EARLY_POSITIONS = 24, 48
SAMPLES = 4
SEVERAL, SEVERAL_DOCUMENTS, FIRST = 6, 100, 8


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, store the calibration, and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.calibration")
    parser.add_argument("work", type=Path, help="the folder that build made")
    work: Path = parser.parse_args(arguments).work
    model, nla = smollm2.load()
    train, held = work / "train.rows.parquet", work / "held_out.rows.parquet"
    part = Published(train, part="held out", held_out=HELD_OUT)
    source, other = read_rows(train, part.numbers()), _held_out(held)
    early = early_rows(model, nla, source)
    calibration = calibrate(nla, source, population=POPULATION, early=early)
    calibration, curves = validated(nla, calibration, other)
    save(calibration, smollm2.paths()["av"], curves)
    model, nla = smollm2.load()  # With its calibration.
    figures = {
        "calibration": {
            "n": calibration.n,
            "strong": calibration.strong,
            "partial": calibration.partial,
            "noisy_positions": calibration.noisy_positions,
            "tested": {name: curve.to_dict() for name, curve in curves.items()},
        },
        "predictors": predictors(nla, other),
        "grades": grades(model, nla, other),
        "grounded": grounded(nla, several_positions(model, nla, other), limit=GROUNDED_ROWS),
        "over_length": lengths(nla, other),
    }
    FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{FIGURES}\n")


def _held_out(file: Path) -> GroundedRows:
    """Return one vector of each of 1,000 documents, as `evaluate` measures."""
    every = read_rows(file)
    return every.take(range(0, len(every), max(1, len(every) // ROWS))[:ROWS])


def several_positions(model: Any, nla: NLA, source: GroundedRows) -> GroundedRows:
    """Read six positions of each of some documents, for position match."""
    long: list[tuple[GroundedRow, list[int]]] = []
    for numbers in source.by_document.values():
        row = source.rows[numbers[-1]]
        ids = model.tokenizer(row.text + row.rest)["input_ids"]
        if len(ids) >= SEVERAL * FIRST:
            long.append((row, ids))
    records: list[dict[str, Any]] = []
    for row, ids in long[:: max(1, len(long) // SEVERAL_DOCUMENTS)][:SEVERAL_DOCUMENTS]:
        with torch.no_grad(), model.trace(torch.tensor([ids])):
            residual = nla.layer(model).output[0].detach().float().save()
            likeliest = model.lm_head.output[0].topk(3).indices.save()
        for turn in range(SEVERAL):
            position = FIRST + turn * (len(ids) - 1 - FIRST) // (SEVERAL - 1)
            text = model.tokenizer.decode(ids[: position + 1])
            following = [model.tokenizer.decode([i]) for i in likeliest[position].tolist()]
            slots = truth(subject_of(row.document), text, following)
            records.append(
                {
                    "activation_vector": residual[position].tolist(),
                    "detokenized_text_truncated": text,
                    "doc_id": row.document,
                    "position": position,
                    "next_tokens": following,
                    "api_explanation": None if slots is None else explanation(slots),
                }
            )
    return from_records(records, f"{source.name}, {SEVERAL} positions of each document")


def early_rows(model: Any, nla: NLA, source: GroundedRows) -> GroundedRows:
    """Read all first positions of some documents."""
    texts = [
        source.rows[numbers[-1]].text
        for numbers in source.by_document.values()
        if len(model.tokenizer(source.rows[numbers[-1]].text)["input_ids"]) >= EARLY_POSITIONS
    ][:EARLY_DOCUMENTS]
    records: list[dict[str, Any]] = []
    for document, text in enumerate(texts):
        ids = model.tokenizer(text)["input_ids"][:EARLY_POSITIONS]
        with torch.no_grad(), model.trace(torch.tensor([ids])):
            residual = nla.layer(model).output[0].detach().float().save()
        records += [
            {
                "activation_vector": residual[position].tolist(),
                "detokenized_text_truncated": model.tokenizer.decode(ids[: position + 1]),
                "doc_id": str(document),
                "position": position,
            }
            for position in range(len(ids))
        ]
    return from_records(records, "the first positions")


def predictors(nla: NLA, source: GroundedRows) -> dict[str, dict[str, float | None]]:
    """Return how well each predictor tells right statements from wrong ones, as AUC."""
    thought = nla.explain(source.vectors)
    nla.resolve(thought)
    labels: Any = thought.trust
    texts, _ = thought.extracted()
    found = _aucs(
        source,
        texts,
        {
            "cosine of the reconstruction": [each.cosine for each in labels],
            "margin over controls": [each.margin for each in labels],
        },
        {"calibrated probability": [dict(each.probabilities) for each in labels]},
    )
    some = source.take(spread(source, SAMPLED))
    sampling = Sampling(temperature=1.0, max_new_tokens=nla.sampling.max_new_tokens)
    drawn = nla.explain(some.vectors, samples=SAMPLES, sampling=sampling)
    nla.resolve(drawn)
    several: Any = drawn.trust
    sampled = _aucs(
        some,
        [drawn.capture.replies[row, 0].text for row in range(len(some))],
        {f"agreement of {SAMPLES} samples": [each.agreement for each in several]},
        {},
    )
    return {**found, **sampled}


def _aucs(
    source: GroundedRows,
    texts: Sequence[str | None],
    plain: Mapping[str, Sequence[float | None]],
    by_statement: Mapping[str, Sequence[Mapping[str, float]]],
) -> dict[str, dict[str, float | None]]:
    truth = known_truth(source.rows)
    assert truth is not None
    right = [
        truth(text, row.label or "") or {} for text, row in zip(texts, source.rows, strict=True)
    ]
    statements = list(right[0])
    found = {
        name: {each: auc(values, [row[each] for row in right]) for each in statements}
        for name, values in plain.items()
    }
    for name, rows in by_statement.items():
        found[name] = {
            each: auc([row.get(each) for row in rows], [row[each] for row in right])
            for each in statements
        }
    return found


def grades(model: Any, nla: NLA, source: GroundedRows) -> dict[str, dict[str, float]]:
    """Return how often each kind of vector gets each grade."""
    own = [row.text for row in source.rows if len(row.text) > 200][:50]
    kinds: Mapping[str, Tensor] = vectors(model, own, nla.checkpoint.layer)
    found: dict[str, dict[str, float]] = {}
    for name, rows in kinds.items():
        thought = nla.explain(rows)
        nla.resolve(thought)
        said: Any = thought.trust
        found[name] = grade_shares([str(each.grade) for each in said])
    return found


def lengths(nla: NLA, source: GroundedRows) -> dict[str, Any]:
    """Return FVE and truth over the length of the text."""
    some = source.take(spread(source, GROUNDED_ROWS))
    thought = nla.explain(some.vectors)
    nla.resolve(thought)
    upto = ("line", 4, 8, 12, 16, 20, 24, 28, 32, 36, "whole")
    return over_length(nla, thought, rows=some.rows, upto=upto).to_dict()


if __name__ == "__main__":
    main()
