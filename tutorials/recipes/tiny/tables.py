"""Print the figures of the tiny pair as Markdown tables, as the repository's README shows them."""

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
            f"{figures['rows']} vectors from texts whose (subject, tone) pair was held out of all "
            f"training. FVE ({Baseline(**trip['baseline']).in_words()}).",
            _table(
                ("trust label", "rows", "subject right", "slots right", "all six right"),
                [(grade, *s.values()) for grade, s in figures["reliability"].items() if s["rows"]],
            ),
            f"Of {claims['rows']} explanations with a made-up line added, `claims` ranks the line "
            f"with the true subject above it in {claims['ranked']:.3f} (it carries "
            f"{claims['true_carries']:.3f} of cosine, the made-up one "
            f"{claims['made_up_carries']:.3f}).",
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
                ("the donor's, after a patch at", "answer", "subject explained", "both"),
                [(_SITES[site], *shares.values()) for site, shares in patched.items()],
            ),
            f"{figures['interventions']['pairs']} held-out pairs. With the subject's position set "
            "to a mean at block 0, the explanation names the subject in "
            f"{ablated['subject']:.3f} of the texts ({ablated['before']:.3f} before).",
        )
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
