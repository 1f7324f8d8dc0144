"""Measure the tiny oracle on held-out questions, against the controls.

    python -m tutorials.recipes.tiny.oracle_figures

It writes ``oracle_figures.json`` next to the weights. A question is right if the answer is exactly
the true one. The controls answer the same questions with nothing written at the slots, with random
vectors of the same norm, and with another row's vectors.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from nnsight_nla import NLA, Sampling, tiny
from nnsight_nla.core.answer_trust import same_answer
from nnsight_nla.tiny.facts import held_out_pairs
from nnsight_nla.tiny.questions import TOPICS, Asked

from .oracle import collect_questions

DOCUMENTS = 20
"""How many held-out documents are read at each block, with one token, and again with three."""
SOURCES = ("oracle", "without", "random", "other")
"""What answers: the oracle with the vectors, and the three controls."""


def measure_oracle(model: Any, nla: NLA, documents: int = DOCUMENTS) -> dict[str, Any]:
    """Return the share of right answers, by kind of question and by number of vectors.

    Args:
        model: The target.
        nla: The oracle on it.
        documents: See `DOCUMENTS`.
    """
    asked = collect_questions(model, sorted(held_out_pairs()), documents, described=0, seed=900)
    said: list[tuple[str | None, ...]] = []
    order: list[Asked] = []
    for layer in sorted({each.layer for each in asked}):
        some = [each for each in asked if each.layer == layer]
        # Otherwise the next row, whose vectors are a control, is often of the same text.
        random.Random(0).shuffle(some)
        handle = nla.ask(
            [each.vectors for each in some],
            [each.text for each in some],
            layer=layer,
            sampling=Sampling(max_new_tokens=8),
        )
        labels = cast("list[Any]", handle.trust)
        texts = cast("list[str]", handle.text)
        said += [
            (text, label.without, label.random, label.other)
            for text, label in zip(texts, labels, strict=True)
        ]
        order += some
    groups = {
        topic: [each.topic == topic and not each.closed for each in order] for topic in TOPICS
    }
    groups["yes or no"] = [each.closed for each in order]
    groups["one vector"] = [len(each.vectors) == 1 for each in order]
    groups["three vectors"] = [len(each.vectors) == 3 for each in order]
    groups["all"] = [True for _ in order]
    return {
        "questions": len(order),
        "right": {name: _right(order, said, held) for name, held in groups.items()},
    }


def record_oracle(model: Any, out: Path) -> dict[str, Any]:
    """Measure the oracle in ``out/weights``, and write its figures to ``out/oracle_figures.json``.

    Args:
        model: The target.
        out: The folder that holds ``weights``.
    """
    figures = measure_oracle(model, NLA.on(model, av=tiny.paths(out / "weights")["oracle"]))
    (out / "oracle_figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return figures


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a Markdown table."""
    head = ("question about", "the vectors", "no vectors", "random", "another row's")
    lines = [head, ["---"] * len(head)]
    for name, shares in figures["right"].items():
        lines.append((name, *(f"{shares[source]:z.2f}" for source in SOURCES)))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _right(
    asked: Sequence[Asked], said: Sequence[tuple[str | None, ...]], held: Sequence[bool]
) -> dict[str, float]:
    shares: dict[str, float] = {}
    for number, source in enumerate(SOURCES):
        right = [
            text is not None and same_answer(text, each.answer)
            for each, texts, counts in zip(asked, said, held, strict=True)
            if counts
            for text in [texts[number]]
        ]
        shares[source] = round(sum(right) / max(1, len(right)), 4)
    return shares


def main(arguments: list[str] | None = None) -> int:
    """Measure the shipped oracle, or one that was built elsewhere, and print its table."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorials.recipes.tiny.oracle_figures",
        description="Measure the tiny oracle on held-out questions, against the controls.",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(tiny.__file__).parent,
        help="the folder that holds weights/ (default: the shipped one)",
    )
    options = parser.parse_args(arguments)
    model, _ = tiny.load(options.out / "weights")
    figures = record_oracle(model, options.out)
    sys.stdout.write(f"{table(figures)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
