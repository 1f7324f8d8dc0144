"""Write the figures on truth of both bundled pairs as tables, for the documentation.

    python -m tutorials.recipes.truth_tables

They were measured by ``tutorials.recipes.smollm2.calibration`` and
``tutorials.recipes.tiny.calibration``.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nnsight_nla import smollm2, tiny

PAGE = Path(__file__).parents[1] / "reference" / "truth_figures.txt"
_MEASURES = {
    "cosine of the reconstruction": "cosine of the reconstruction",
    "margin over controls": "its margin over controls (the label)",
    "agreement of 4 samples": "agreement of 4 samples",
    "calibrated probability": "**calibrated probability**",
}
_TEXT = {
    "mentions so far": "quotes, names and numbers that are in the text so far",
    "mentions later": "... that come later in the document",
    "mentions nowhere": "... that are nowhere in it",
    "next": "named next token among the target's three likeliest",
}


def page() -> str:
    """Return the tables, each with a sentence on what was measured."""
    real, made_up = smollm2.figures()["truth"], tiny.figures()["truth"]
    parts = [
        "These tables are the output of ``python -m tutorials.recipes.truth_tables``.",
        *_title("Does the label tell right from wrong?"),
        "Area under the ROC curve for 1,000 vectors of SmolLM2, from sources that were not trained "
        "on: 0.5 is chance, and 1 separates all right statements from wrong ones.",
        _areas(real["predictors"]),
        "The quality of the reconstruction says almost nothing about the truth of a statement. The "
        "probability that the verbalizer itself gives the statement does.",
        *_title("Calibration"),
        _calibrated("SmolLM2", "sources", real["calibration"]),
        _curves(real["calibration"]["tested"]),
        _calibrated("The tiny pair", "combinations of subject and tone", made_up["calibration"]),
        _curves(made_up["calibration"]["tested"]),
        "The reliability curve of SmolLM2: for each tenth of the explanations, the mean "
        "probability and the share that is right.",
        _reliability(real["calibration"]["tested"]),
        *_title("Out of distribution"),
        "How often each kind of vector gets each grade, for SmolLM2:",
        _grades(real["grades"]),
        "The same for the tiny pair, where the true subject is also known at other blocks:",
        _grades(made_up["grades"]),
        *_title("Compared with the texts"),
        _grounded("SmolLM2", real["grounded"]),
        _matches(real["grounded"]),
        _grounded("The tiny pair", made_up["grounded"]),
        _matches(made_up["grounded"]),
        "How well figures that do not use the truth separate right statements from wrong ones "
        "(area under the ROC curve, SmolLM2):",
        _areas(real["grounded"]["agreement"]),
        *_title("Truth and length"),
        "SmolLM2:",
        _lengths(real["over_length"]),
        "The tiny pair:",
        _lengths(made_up["over_length"]),
    ]
    return "\n\n".join(map(_wrapped, parts)) + "\n"


def _title(text: str) -> tuple[str]:
    return (f"{text}\n{'~' * len(text)}",)


def _areas(figures: Mapping[str, Mapping[str, float | None]]) -> str:
    statements = list(dict.fromkeys(name for each in figures.values() for name in each))
    names = [name for name in _MEASURES if name in figures]
    names += [name for name in figures if name not in names]
    return _table(
        ("Measure", *statements),
        [
            (_MEASURES.get(name, name), *(figures[name].get(each) for each in statements))
            for name in names
        ],
    )


def _calibrated(name: str, tested: str, figures: Mapping[str, Any]) -> str:
    early = figures["noisy_positions"]
    noisy = "no first positions are noisy" if early == 0 else f"noisy first positions: {early}"
    return (
        f"{name}: fitted on {figures['n']:,} vectors of held-out documents of the training "
        f"sources. *Strong* starts at a margin of {figures['strong']:z.2f}, *partial* at "
        f"{figures['partial']:z.2f}; {noisy}. Tested on {tested} that were never trained on:"
    )


def _curves(tested: Mapping[str, Any]) -> str:
    return _table(
        ("Statement", "right", "mean probability", "calibration error", "vectors"),
        [
            (name, each["rate"], each["predicted"], each["error"], each["n"])
            for name, each in tested.items()
        ],
    )


def _reliability(tested: Mapping[str, Any]) -> str:
    bins = max(len(each["bins"]) for each in tested.values())
    rows = [
        (
            str(number + 1),
            *(
                f"{each['bins'][number]['predicted']:z.2f}: {each['bins'][number]['rate']:z.2f}"
                for each in tested.values()
            ),
        )
        for number in range(bins)
    ]
    return _table(("Tenth", *tested), rows)


def _grades(figures: Mapping[str, Mapping[str, float]]) -> str:
    names = list(dict.fromkeys(name for each in figures.values() for name in each))
    return _table(
        ("Vector", *names),
        [
            (kind, *(int(each[n]) if n == "rows" else each.get(n) for n in names))
            for kind, each in figures.items()
        ],
    )


def _grounded(name: str, figures: Mapping[str, Any]) -> str:
    text, others = figures["text"], figures["shuffled"]
    rows = [
        (_TEXT.get(each, f"{each} is right"), _interval(text[each]), _interval(others.get(each)))
        for each in text
        if each != "says next"
    ]
    said = f"{name}: {figures['rows']} rows of {figures['documents']} documents."
    return f"{said}\n\n" + _table(("Share", "its text", "another document's text"), rows)


def _matches(figures: Mapping[str, Any]) -> str:
    rows = [
        (f"which of {what}, by {who}", _interval(figures[kind][way]), figures[kind][way]["chance"])
        for kind, what in (("position", "five positions"), ("source", "four documents"))
        if figures[kind]
        for way, who in (("cosine", "the reconstructor"), ("likelihood", "the verbalizer"))
        if figures[kind].get(way)
    ]
    return _table(("From the explanation alone", "right", "chance"), rows)


def _lengths(figures: Mapping[str, Any]) -> str:
    points = figures["points"]
    statements = list(points["whole"]["right"])
    return _table(
        ("Cut after", "tokens", "FVE", *statements),
        [
            (
                "the first line" if name == "line" else name,
                f"{each['tokens']:.1f}",
                each["fve"],
                *(each["right"].get(statement) for statement in statements),
            )
            for name, each in points.items()
        ],
    )


def _interval(share: Mapping[str, Any] | None) -> str:
    return "" if share is None else f"{share['value']:.3f} ({share['low']:.3f}–{share['high']:.3f})"


def _wrapped(part: str) -> str:
    if part.startswith(".. ") or "\n" in part:
        return part
    return textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False)


def _table(head: Sequence[str], rows: Sequence[Sequence[str | float | int | None]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        cells = [
            "" if cell is None else f"{cell:z.3f}" if isinstance(cell, float) else str(cell)
            for cell in row
        ]
        lines += [f"   {'* ' if i == 0 else '  '}- {cell}".rstrip() for i, cell in enumerate(cells)]
    return "\n".join(lines)


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")


if __name__ == "__main__":
    main()
