"""Whether `claims` tells what is in the vector from what only sounds right.

Into each explanation of a held-out vector goes one more line of the very same form, about another
subject of the same kind. The line that names the true subject should carry more than the made-up
one.
"""

from __future__ import annotations

import random
from typing import Any

from .documents import Truth
from .examples import Examples
from .explanations import explain, parse
from .facts import SUBJECTS, TONES


def claim_rates(nla: Any, examples: Examples, *, seed: int = 0) -> dict[str, float | int]:
    """The share of explanations in which the true line carries more than the made-up one.

    Args:
        nla: The pair.
        examples: Held-out vectors; those before any subject was named are left out.
        seed: Of the made-up subjects, their tones, and the line's place.

    Returns:
        ``rows``; the share ``ranked`` with the true line above, in which a row without a text
        counts as one without; and of the true and the made-up line the mean that it
        ``true_carries`` and ``made_up_carries``.
    """
    rng = random.Random(seed)
    rows = [i for i, gold in enumerate(examples.explanations) if parse(gold).subject != "none"]
    vectors = examples.vectors[rows]
    texts = list(nla.explain(vectors).text)
    lines: list[tuple[str, str]] = []
    mixed: list[str] = []
    # A verbalizer that was hardly trained may say nothing.
    told = [place for place, text in enumerate(texts) if text.strip()]
    for row, text in ((rows[place], texts[place]) for place in told):
        kind = SUBJECTS[str(parse(examples.explanations[row]).subject)].kind
        said = parse(text).subject
        others = [s.name for s in SUBJECTS.values() if s.kind == kind and s.name != said]
        truth = Truth(rng.choice(others), rng.choice(tuple(TONES)), "unknown")
        made_up = explain(truth, "x", "x").splitlines()[0]
        parts = [line.strip() for line in text.splitlines() if line.strip()]
        first = parts[0]
        parts.insert(rng.randrange(len(parts) + 1), made_up)
        lines.append((first, made_up))
        mixed.append("\n".join(parts))
    carried = [
        [next(c.carries for c in found.parts if c.text == line) for line in pair]
        for found, pair in zip(nla.claims(mixed, vectors[told]), lines, strict=True)
    ]
    count = max(1, len(carried))
    return {
        "rows": len(rows),
        "ranked": sum(true > made for true, made in carried) / len(rows),
        "true_carries": sum(true for true, _ in carried) / count,
        "made_up_carries": sum(made for _, made in carried) / count,
    }
