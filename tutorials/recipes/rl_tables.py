"""Write the figures of reinforcement learning on both embedded pairs as tables, for the docs.

    python -m tutorials.recipes.rl_tables

They were measured by ``tutorials.recipes.tiny.rl`` and ``tutorials.recipes.smollm2.rl``.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .rl_figures import read

PAGE = Path(__file__).parents[1] / "reference" / "reinforcement_figures.txt"
_STARTS = {
    "tiny noisy": "noisy, the AR frozen",
    "tiny noisy-both": "noisy, the AR trained along at 1e-5",
    "tiny short": "short, the AR frozen",
    "tiny short-both": "short, the AR trained along at 8e-5",
}
_SLOTS = ("subject", "attribute", "tone", "stage", "current", "next", "all slots")
_TINY = {
    "step": "Step",
    "reward": "reward",
    "kl": "KL",
    "distinct": "distinct",
    "eval_fve": "FVE",
    "eval_fve_trained": "FVE, trained AR",
    "eval_grounded_subject": "subject",
    "eval_grounded_attribute": "attribute",
    "eval_grounded_current": "current",
    "eval_grounded_label_next": "next",
    "eval_exact": "all slots",
    "eval_grounded_position": "position match",
}
_SMOLLM2 = {
    "step": "Step",
    "reward": "reward",
    "kl": "KL",
    "entropy": "entropy",
    "eval_fve": "FVE",
    "eval_grounded_subject": "subject",
    "eval_grounded_content": "content",
    "eval_grounded_last_word": "last word",
    "eval_grounded_next": "next token",
    "eval_grounded_position": "position match",
    "eval_grounded_source": "source match",
    "eval_grounded_mentions_so_far": "quotes in the text",
}
_HACKS = {
    "step": "Step",
    "length": "length, tokens",
    "extraction": "extraction",
    "blind": "blind AR's reward",
    "reward": "reward",
    "kl": "KL",
    "eval_fve": "FVE",
    "eval_grounded_subject": "subject",
    "eval_grounded_attribute": "attribute",
    "eval_grounded_tone": "tone",
    "eval_grounded_current": "current",
    "eval_grounded_source": "source match",
}


def page() -> str:
    """Return the tables, each with a sentence on what was measured."""
    found = read()
    runs = {name: found[name] for name in _STARTS if name in found}
    parts = ["Made by ``python -m tutorials.recipes.rl_tables``."]
    if runs:
        parts += [*_title("The tiny pair"), *_tiny(runs)]
    if "smollm2" in found:
        parts += [*_title("SmolLM2"), *_smollm2(found["smollm2"])]
    if "tiny length" in found or "tiny blind" in found:
        parts += [*_title("Rewards that can be hacked"), *_hacks(found)]
    return "\n\n".join(map(_wrapped, parts)) + "\n"


def _tiny(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    rows: list[tuple[Any, ...]] = []
    for name, run in runs.items():
        for when in ("before", "after", "after, by the trained reconstructor"):
            if when in run:
                each = run[when]
                shown = (each["fve"], *(each[slot] for slot in _SLOTS), each["extraction"])
                null = f"{each['null_reward']:z.3f} ± {each['null_error']:z.3f}"
                rows.append((_STARTS[name], when, *shown, null))
    times = "; ".join(
        f"{_STARTS[name]}, {run['steps']} steps in {run['minutes']:.0f} minutes"
        + (f" ({run['processor']:.0f} of a processor)" if "processor" in run else "")
        for name, run in runs.items()
    )
    first = next(iter(runs))
    return [
        "Two bad verbalizers: *noisy*, the shipped one with noise on its weights, and *short*, "
        "trained on labels for half of the steps, of half as many rows, and stopped while its "
        "learning rate was at its peak. Both are trained on "
        "vectors alone (``python -m tutorials.recipes.tiny.rl WORK``) and measured, greedily, on "
        "300 vectors of pairs of "
        "subject and tone that no training saw. The FVE is judged by the shipped reconstructor "
        "(AR), whichever is trained. The null control's reward is the mean over 128 texts that "
        "are drawn without a vector, at temperature 1, with its standard error. Temperatures, "
        "rates and steps were chosen on other documents, those of the curve below.",
        _table(("Start", "", "FVE", *_SLOTS, "extraction", "null reward"), rows),
        "On the clock of a machine of two cores that other work used too, with one thread: "
        f"{times}.",
        f"The curve of *{_STARTS[first]}*, on other documents of the training's pairs; reward, KL "
        "and *distinct* are means of the draws since the line before:",
        _curve(runs[first]["log"], _TINY),
    ]


def _smollm2(run: Mapping[str, Any]) -> list[str]:
    settings, log = run["settings"], run["log"]
    steps, first, last = int(log[-1]["step"]), log[0], log[-1]
    changes = ", ".join(
        f"{said} {last[name] - first[name]:+z.3f}"
        for name, said in _SMOLLM2.items()
        if "grounded" in name
    )
    return [
        f"``python -m tutorials.recipes.smollm2.rl WORK OUT``: {steps} steps of "
        f"{settings['prompts']} vectors × {settings['draws']} texts, the reconstructor frozen, an "
        f"adapter of rank 12 that continues at a rate of {settings['av_rate']:g}. They took "
        f"{run['minutes']:.0f} minutes on the clock, on a share of one processor (most of a minute "
        f"of processor time a step). That is {steps * settings['prompts']:,} vectors; the "
        "published recipe has 102,400. Neither adapter was trained on the sources of these "
        f"vectors. Measured on {run['rows']} vectors of documents that this training leaves out "
        "too; two standard errors of a share are up to .09.",
        _curve(log, _SMOLLM2),
        "From the first line to the last the FVE changes by "
        f"**{last['eval_fve'] - first['eval_fve']:+z.3f}**, and the measures of truth by: "
        f"{changes}.",
    ]


def _hacks(found: Mapping[str, Any]) -> list[str]:
    parts: list[str] = []
    for name, what in (
        (
            "tiny length",
            "The reward is the number of words alone. The reward rises; extraction, FVE and every "
            "measure of truth fall:",
        ),
        (
            "tiny blind",
            "The reward is that of a reconstructor that does not read the first line, with "
            "subject, attribute and tone, and a little for brevity. It rises, and so does the FVE, "
            "by what the other lines say; that the first line gets no truer is seen in its own "
            "figures:",
        ),
    ):
        if name in found:
            stopped = found[name]["stopped"]
            end = f" Stopped by its condition: {stopped}." if stopped else ""
            parts += [what, _curve(found[name]["log"], _HACKS)]
            parts += [end.strip()] if end else []
    return parts


def _curve(log: Sequence[Mapping[str, float]], columns: Mapping[str, str]) -> str:
    """Return the figures of the measured steps."""
    used = [name for name in columns if any(name in line for line in log)]
    return _table(
        [columns[name] for name in used],
        [tuple(int(line[n]) if n == "step" else line.get(n) for n in used) for line in log],
    )


def _title(text: str) -> tuple[str]:
    return (f"{text}\n{'~' * len(text)}",)


def _wrapped(part: str) -> str:
    if part.startswith(".. ") or "\n" in part:
        return part
    return textwrap.fill(part, 100, break_long_words=False)


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
