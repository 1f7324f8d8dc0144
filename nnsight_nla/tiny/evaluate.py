"""What the pair is worth: every figure, measured with the product itself.

The vectors stand at random tokens of texts whose (subject, tone) pair is in no training text.
Each is explained as a user would explain it, and the text is compared with the gold explanation
slot by slot. The same is done for the controls, which say what the verbalizer knows without the
vector: *null* (nothing written), *random* (a random direction of the same norm) and *shuffled*
(another row's vector).

Texts are then turned back into vectors (*round trip*), residuals patched and ablated
(`interventions`), claims told from made-up ones (`made_up`), the target steered by edited words
(`steering`), and trust labels held against the truth (`reliability`).

    python -m nnsight_nla.tiny.evaluate               a table, and what fell below its floor
    python -m nnsight_nla.tiny.evaluate --json        the figures as JSON
    python -m nnsight_nla.tiny.evaluate --markdown    the table alone
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..core.baseline import Baseline
from ..evaluation.evaluate import explained, round_trip
from . import load
from .examples import Examples, collect
from .explanations import SLOTS, parse
from .facts import held_out_pairs
from .interventions import rates
from .made_up import claim_rates
from .reliability import reliability
from .steering import steering_rates
from .target import K

_SITES = {
    **{str(layer): f"the subject's position, block {layer}" for layer in range(K + 1)},
    "last, K": f"the last position, block {K}",
}

Figures = dict[str, Any]
"""Nested mappings of numbers and names, ready for JSON."""

FIGURES = Path(__file__).parent / "figures.json"
"""The figures of the shipped pair, as `build` measured them."""

BOUNDS: dict[str, tuple[float, float]] = {
    "held_out/true/subject": (0.95, 1.0),
    "held_out/true/attribute": (0.95, 1.0),
    "held_out/true/tone": (0.90, 1.0),
    "held_out/true/stage": (0.90, 1.0),
    "held_out/true/current": (0.90, 1.0),
    "held_out/true/next": (0.80, 1.0),
    "held_out/null/subject": (0.0, 0.12),
    "held_out/null/attribute": (0.0, 0.12),
    "held_out/random/subject": (0.0, 0.12),
    "held_out/random/attribute": (0.0, 0.12),
    "round_trip/explanation/fve": (0.90, 1.0),
    "round_trip/gold/fve": (0.90, 1.0),
    "round_trip/shuffled/fve": (-4.0, 0.0),
    "claims/ranked": (0.90, 1.0),
    "steering/nothing/new": (0.0, 0.05),
    "steering/subject and its fact edited/new": (0.80, 1.0),
    "steering/subject's name edited/new": (0.80, 1.0),
    "steering/random direction/new": (0.0, 0.10),
    "reliability/high/subject": (0.95, 1.0),
    "reliability/low/subject": (0.0, 0.60),
    "interventions/patch/0/both": (0.90, 1.0),
    "interventions/patch/2/both": (0.0, 0.10),
    "interventions/patch/3/both": (0.0, 0.10),
    "interventions/patch/last, K/both": (0.90, 1.0),
    "interventions/ablate/before": (0.90, 1.0),
    "interventions/ablate/subject": (0.0, 0.10),
}
"""Where each figure has to lie; a build that leaves these bounds fails."""


def measure(model: Any, nla: Any, *, documents: int = 300, pairs: int = 20) -> Figures:
    """Measure a pair on combinations that it was never trained on.

    Args:
        model: The target.
        nla: Its NLA.
        documents: Held-out texts; three vectors are drawn from each.
        pairs: Pairs of subjects for each prompt that is patched.
    """
    held_out = collect(model, sorted(held_out_pairs()), documents=documents, seed=900)
    told, controls = explained(nla, held_out.vectors)
    texts = list(told.text)
    some = held_out[: len(held_out) // 3]
    return {
        "rows": len(held_out),
        "held_out": {
            "true": accuracies(texts, held_out),
            "null": accuracies([controls.null.text] * len(held_out), held_out),
            "random": accuracies(controls.random.text, held_out),
            "shuffled": accuracies(controls.shuffled.text, held_out),
        },
        "round_trip": _round_trip(nla, held_out, texts),
        "claims": claim_rates(nla, held_out),
        "reliability": reliability(nla, some),
        "steering": steering_rates(model, nla, cases=10 * pairs),
        "interventions": rates(model, nla, pairs=5 * pairs),
    }


def accuracies(texts: Sequence[str], examples: Examples) -> dict[str, float]:
    """The share of texts that are right in each slot, and of those that are right to the letter."""
    said = [parse(text) for text in texts]
    true = [parse(text) for text in examples.explanations]
    shares = {
        slot: _mean(getattr(a, slot) == getattr(b, slot) for a, b in zip(said, true, strict=True))
        for slot in SLOTS
    }
    exact = _mean(a == b for a, b in zip(texts, examples.explanations, strict=True))
    return {**shares, "exact": exact}


def out_of_bounds(figures: Figures) -> list[str]:
    """A sentence for each figure outside its `BOUNDS`; none when the pair is as promised."""
    complaints: list[str] = []
    for path, (low, high) in BOUNDS.items():
        value: Any = figures
        for key in path.split("/"):
            value = value[key]
        if not low <= value <= high:
            complaints.append(f"{path} is {value:.3f}, expected {low:g} to {high:g}.")
    return complaints


def markdown(figures: Figures) -> str:
    """The figures as tables, each with what it was measured on."""
    held_out, trip, claims = figures["held_out"], figures["round_trip"], figures["claims"]
    baseline = Baseline(**trip["baseline"])
    names = {"explanation": "AV's text", "gold": "gold text", "shuffled": "another row's text"}
    patched, ablated = (figures["interventions"][name] for name in ("patch", "ablate"))
    return "\n\n".join(
        (
            _table(
                ("vector", *SLOTS, "exact"),
                [(name, *held_out[name].values()) for name in held_out],
            ),
            _table(
                ("reconstructed from", "FVE", "cosine"),
                [(text, trip[key]["fve"], trip[key]["cosine"]) for key, text in names.items()],
            ),
            f"{figures['rows']} vectors from texts whose (subject, tone) pair was held out of all "
            f"training. FVE over {baseline}.",
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


def _round_trip(nla: Any, examples: Examples, texts: Sequence[str]) -> dict[str, Any]:
    baseline = Baseline.from_vectors(examples.vectors, name="the held-out vectors")
    sources = {
        "explanation": list(texts),
        "gold": list(examples.explanations),
        # Half the rows away: another document's text.
        "shuffled": [texts[i - len(texts) // 2] for i in range(len(texts))],
    }
    return {
        "baseline": baseline.to_dict(),
        **round_trip(nla, sources, examples.vectors, baseline),
    }


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | int]]) -> str:
    lines = [head, ["---"] * len(head)]
    lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in r] for r in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the shipped pair; 1 when a figure is out of its bounds."""
    parser = argparse.ArgumentParser(prog="python -m nnsight_nla.tiny.evaluate")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures as JSON")
    form.add_argument("--markdown", action="store_true", help="print the tables alone")
    options = parser.parse_args(arguments)
    model, nla = load()
    figures = measure(model, nla)
    complaints = out_of_bounds(figures)
    if options.json:
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    else:
        sys.stdout.write(markdown(figures) + "\n")
    if not options.json and not options.markdown:
        sys.stdout.write("\n" + ("\n".join(complaints) or "Every figure is in its bounds.") + "\n")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
