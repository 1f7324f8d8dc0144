"""Measure whether `nla.claims` tells a line that is in the vector from one that is made up.

Each explanation of a held-out vector gets one more line of the same form, about another subject of
the same kind. The line that names the true subject should carry more than the made-up one.
"""

from __future__ import annotations

import random

from nnsight_nla import NLA
from nnsight_nla.tiny.documents import Truth
from nnsight_nla.tiny.examples import Examples
from nnsight_nla.tiny.explanations import explain, parse
from nnsight_nla.tiny.facts import SUBJECTS, TONES


def claim_rates(nla: NLA, examples: Examples, *, seed: int = 0) -> dict[str, float | int]:
    """Count how often the true line carries more than the made-up one.

    Args:
        nla: The pair.
        examples: Held-out vectors; those before any subject was named are left out.
        seed: The seed of the made-up subjects, their tones, and the position of the line.

    Returns:
        ``rows``; the share ``ranked`` with the true line above the made-up one, where a row without
        a text counts as not ranked; and the mean cosine that the true and the made-up line carry,
        ``true_carries`` and ``made_up_carries``.
    """
    rng = random.Random(seed)
    rows = [i for i, gold in enumerate(examples.explanations) if parse(gold).subject != "none"]
    vectors = examples.vectors[rows]
    texts = list(nla.explain(vectors).text)
    # A verbalizer that was hardly trained may say nothing.
    told = [i for i, text in enumerate(texts) if text.strip()]
    lines: list[tuple[str, str]] = []
    mixed: list[str] = []
    for i in told:
        own = [line.strip() for line in texts[i].splitlines() if line.strip()]
        made_up = _made_up_line(rng, examples.explanations[rows[i]], texts[i])
        lines.append((own[0], made_up))
        own.insert(rng.randrange(len(own) + 1), made_up)
        mixed.append("\n".join(own))
    carried = [
        [next(claim.carries for claim in found.parts if claim.text == line) for line in pair]
        for found, pair in zip(nla.claims(mixed, vectors[told]), lines, strict=True)
    ]
    count = max(1, len(carried))
    return {
        "rows": len(rows),
        "ranked": sum(true > made_up for true, made_up in carried) / len(rows),
        "true_carries": sum(true for true, _ in carried) / count,
        "made_up_carries": sum(made_up for _, made_up in carried) / count,
    }


def _made_up_line(rng: random.Random, gold: str, text: str) -> str:
    """Return a first line about a subject of the true kind that `text` does not name."""
    kind, said = SUBJECTS[str(parse(gold).subject)].kind, parse(text).subject
    others = [s.name for s in SUBJECTS.values() if s.kind == kind and s.name != said]
    truth = Truth(rng.choice(others), rng.choice(tuple(TONES)), "unknown")
    return explain(truth, "x", "x").splitlines()[0]
