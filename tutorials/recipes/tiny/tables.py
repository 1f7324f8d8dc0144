"""Format the figures of the tiny pair as Markdown tables, for the documentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nnsight_nla import Baseline
from nnsight_nla.tiny.examples import K
from nnsight_nla.tiny.explanations import SLOTS

_SITES = {
    **{str(layer): f"the subject's position, block {layer}" for layer in range(K + 1)},
    "last, K": f"the last position, block {K}",
}
_SOURCES = {"explanation": "AV's text", "gold": "gold text", "shuffled": "another row's text"}


def markdown(figures: Mapping[str, Any]) -> str:
    """Return the figures as tables, each with a sentence on what was measured."""
    held_out, trip, claims = figures["held_out"], figures["round_trip"], figures["claims"]
    patched, ablated = (figures["interventions"][name] for name in ("patch", "ablate"))
    return "\n\n".join(
        (
            _table(
                ("vector", *SLOTS, "exact"),
                [(name, *held_out[name].values()) for name in held_out],
            ),
            _table(
                ("reconstructed from", "FVE", "cosine"),
                [(text, trip[key]["fve"], trip[key]["cosine"]) for key, text in _SOURCES.items()],
            ),
            f"The tables above: {figures['rows']} vectors from texts whose combination of subject "
            "and tone was held out of all training. FVE "
            f"({Baseline(**trip['baseline']).in_words()}).",
            _table(
                ("trust label", "rows", "subject right", "slots right", "all six right"),
                [(grade, *s.values()) for grade, s in figures["reliability"].items() if s["rows"]],
            ),
            f"A made-up line was added to {claims['rows']} explanations. In a share of "
            f"{claims['ranked']:z.3f}, `claims` ranks the line with the true subject above it (the "
            f"true line carries {claims['true_carries']:z.3f} of cosine, the made-up line "
            f"{claims['made_up_carries']:z.3f}).",
            _table(
                (
                    "added at block K, last position",
                    "answers for the new subject",
                    "old",
                    "neither",
                ),
                [(name, *shares.values()) for name, shares in figures["steering"].items()],
            ),
            _table(
                ("patched at", "answer", "subject explained", "both"),
                [(_SITES[site], *shares.values()) for site, shares in patched.items()],
            ),
            f"Patches of {figures['interventions']['pairs']} held-out pairs of texts: how often "
            "the answer and the explained subject become those of the other text. With the "
            "residual at the subject's position replaced by a mean at block 0, the explanation "
            f"names the subject in {ablated['subject']:z.3f} of the texts "
            f"({ablated['before']:z.3f} before).",
        )
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [
        [f"{cell:z.3f}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
