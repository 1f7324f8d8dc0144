"""Write the figures of SmolLM2's NLA as tables in reStructuredText, for the documentation."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from nnsight_nla import Baseline

_READ = {
    "true": "**its vector**", "shuffled": "another row's vector", "random": "a random direction",
    "null": "no vector", "nearest": "label of the nearest training vector",
    "majority": "commonest training answer",
}  # fmt: skip
_TEXTS = {
    "explanation": "**the explanation**", "label": "the label",
    "nearest": "label of the nearest training vector",
    "shuffled": "explanation of another row's vector",
    "random": "explanation of a random direction", "null": "explanation of no vector",
}  # fmt: skip


def page(figures: Mapping[str, Any]) -> str:
    """Return the figures as tables, each with a sentence on what was measured."""
    slots, probe, moved = figures["slots"], figures["probe"], figures["interventions"]
    train, retrieval = figures["train"], figures["retrieval"]
    by_source = "; ".join(
        f"{name}, {each['subject']:z.3f} of {each['rows']} rows"
        for name, each in figures["subject_by_source"].items()
    )
    parts = (
        "These tables are the output of ``python -m tutorials.recipes.smollm2.evaluate``, for "
        f"{figures['rows']:,} vectors of block {figures['layer']}, from {figures['documents']:,} "
        f"texts of sources that were not trained on. (The training data are {train['rows']:,} rows "
        f"of {train['documents']:,} texts.) A line of an explanation is right if it agrees with "
        "the text and with the target's own next tokens. "
        f"{figures['extraction']:.1%} of the replies are well-formed explanations.",
        _table(
            ("Read", *slots["true"]), [(name, *slots[key].values()) for key, name in _READ.items()]
        ),
        f"How often the subject is right: {by_source}. A linear probe on the same training rows "
        f"names the subject in {probe['subject']:z.3f}, and in {probe['subject, known ones']:z.3f} "
        "of the rows whose subject it was trained on.",
        "How much of the subject can be decoded at all: a two-layer network that was trained on "
        "the same rows to name only the subject (``python -m tutorials.recipes.smollm2.probes``) "
        "is right in these shares of the rows: "
        + "; ".join(f"{name}, {value:z.3f}" for name, value in figures["network"].items())
        + ". On subjects in the training labels the verbalizer does about as well, and it also "
        "names some subjects that are in no label.",
        _table(
            ("Reconstructed from", "FVE", "cosine"),
            [
                (name, figures["fve"][key], figures["cosine"][key])
                for key, name in _TEXTS.items()
                if key in figures["fve"]
            ],
        ),
        f"FVE ({Baseline(**figures['baseline']).in_words()}). The share of reconstructions that "
        f"are nearest to their own vector, out of {figures['rows']:,}, is "
        f"{retrieval['explanation']:.3f} for the explanations and {retrieval['label']:.3f} for the "
        "labels.",
        "How much a line depends on the vector: the log-likelihood of the true line, in nats, with "
        "its own vector and with another row's. The last column is the share due to the vector.",
        _table(
            ("Line", "its vector", "another vector", "the vector's share"),
            [(name, *each.values()) for name, each in figures["nats"].items()],
        ),
        f"Patching, for {moved['pairs']} pairs of prompts about countries: how often the answer "
        "becomes that of the prompt that the residual comes from, and how often the explanation of "
        "the last residual names it as the next token.",
        _table(
            ("Patched at", "answer", "explained", "both"),
            [(name, *shares.values()) for name, shares in moved["patch"].items()],
        ),
        "Steering with an explanation whose likeliest next token was edited, at the last position "
        f"of block {figures['layer']}: which answer the target gives.",
        _table(
            ("Added", "new answer", "old answer", "neither"),
            [(name, *shares.values()) for name, shares in moved["steer"].items()],
        ),
        "Ablation: with the residual at the country's position replaced by a mean at block 0, "
        f"{moved['ablate']['after']:z.3f} of the explanations name the answer "
        f"({moved['ablate']['before']:z.3f} before).",
    )
    return "\n\n".join(_wrapped(part) for part in parts) + "\n"


def _wrapped(part: str) -> str:
    if part.startswith(".. "):
        return part
    return textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        cells = [f"{cell:z.3f}" if isinstance(cell, float) else str(cell) for cell in row]
        lines += [f"   {'* ' if i == 0 else '  '}- {cell}" for i, cell in enumerate(cells)]
    return "\n".join(lines)
