"""Measure the tiny pair on pairs of subject and tone that are held out of all training.

    python -m tutorials.recipes.tiny.evaluate               tables, and every figure out of bounds
    python -m tutorials.recipes.tiny.evaluate --json        the figures as JSON
    python -m tutorials.recipes.tiny.evaluate --markdown    the tables alone

The vectors are residuals at random tokens of held-out texts. Each is explained as a user would
explain it, and the text is compared with the gold explanation slot by slot. The same is done for
three controls, which show what the verbalizer says without the vector: *null* (nothing written),
*random* (a random direction of the same norm) and *shuffled* (another row's vector). Texts are also
turned back into vectors (the *round trip*). The other figures have a file each: `made_up_claims`,
`trust_reliability`, `steering` and `interventions`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from nnsight import TransformersModel

from nnsight_nla import NLA, Baseline, tiny
from nnsight_nla.tiny.examples import Examples, collect
from nnsight_nla.tiny.explanations import SLOTS, parse
from nnsight_nla.tiny.facts import held_out_pairs

from .bounds import out_of_bounds
from .interventions import intervention_rates
from .made_up_claims import claim_rates
from .steering import steering_rates
from .tables import markdown
from .trust_reliability import trust_reliability


def measure(
    model: TransformersModel, nla: NLA, *, documents: int = 300, pairs: int = 20
) -> dict[str, Any]:
    """Measure a pair on combinations of subject and tone that it was not trained on.

    Args:
        model: The target.
        nla: Its NLA.
        documents: How many held-out texts; three vectors are drawn from each.
        pairs: How many pairs of subjects for each prompt that is patched.

    Returns:
        Nested mappings of numbers and names, ready for JSON.
    """
    held_out = collect(model, sorted(held_out_pairs()), documents=documents, seed=900)
    thoughts = nla.explain(held_out.vectors)
    controls = nla.controls(len(held_out), like=held_out.vectors)
    assert controls.shuffled is not None  # `like` was passed
    nla.resolve()  # all texts in full batches
    texts = list(thoughts.text)
    a_third = held_out[: len(held_out) // 3]
    return {
        "rows": len(held_out),
        "held_out": {
            "true": slot_accuracies(texts, held_out),
            "null": slot_accuracies([controls.null.text] * len(held_out), held_out),
            "random": slot_accuracies(controls.random.text, held_out),
            "shuffled": slot_accuracies(controls.shuffled.text, held_out),
        },
        "round_trip": _round_trip(nla, held_out, texts),
        "claims": claim_rates(nla, held_out),
        "reliability": trust_reliability(nla, a_third),
        "steering": steering_rates(model, nla, cases=10 * pairs),
        "interventions": intervention_rates(model, nla, pairs=5 * pairs),
    }


def slot_accuracies(texts: Sequence[str], examples: Examples) -> dict[str, float]:
    """Return the share of texts that are right in each slot, and of those that match exactly."""
    said = [parse(text) for text in texts]
    true = [parse(text) for text in examples.explanations]
    shares = {
        slot: _mean(getattr(a, slot) == getattr(b, slot) for a, b in zip(said, true, strict=True))
        for slot in SLOTS
    }
    exact = _mean(a == b for a, b in zip(texts, examples.explanations, strict=True))
    return {**shares, "exact": exact}


def _round_trip(nla: NLA, examples: Examples, texts: Sequence[str]) -> dict[str, Any]:
    """Return cosine, MSE and FVE of the vectors that the AR makes from three kinds of text."""
    baseline = Baseline.from_vectors(examples.vectors, name="the held-out vectors")
    offset = len(texts) // 2  # another row, from another document
    sources = {
        "explanation": [text or "" for text in texts],
        "gold": list(examples.explanations),
        "shuffled": [texts[i - offset] or "" for i in range(len(texts))],
    }
    scores = {
        name: nla.score(source, examples.vectors, baseline=baseline, failures="zero").mean
        for name, source in sources.items()
    }
    return {"baseline": baseline.to_dict(), **scores}


def _mean(values: Any) -> float:
    listed = [float(value) for value in values]
    return sum(listed) / len(listed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the shipped pair and print its figures; return 1 when one is out of its bounds."""
    parser = argparse.ArgumentParser(
        prog="python -m tutorials.recipes.tiny.evaluate",
        description="Measure the shipped tiny pair on held-out pairs of subject and tone.",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print the figures as JSON")
    form.add_argument("--markdown", action="store_true", help="print the tables alone")
    options = parser.parse_args(arguments)
    figures = measure(*tiny.load())
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
