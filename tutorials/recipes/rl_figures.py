"""Keep the figures of reinforcement learning, which the recipes measure, for the docs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FIGURES = Path(__file__).parents[1] / "numbers" / "reinforcement.json"


def record(name: str, figures: dict[str, Any]) -> None:
    """Write the figures of one recipe, in place of its earlier ones; numbers get four digits."""
    known = read()
    known[name] = _rounded(figures)
    text = json.dumps(dict(sorted(known.items())), indent=1)
    FIGURES.write_text(text + "\n", encoding="utf-8")


def read() -> dict[str, Any]:
    """Return the figures of all recipes, by name."""
    return json.loads(FIGURES.read_text("utf-8")) if FIGURES.exists() else {}


def curve(log: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Return the measured steps of a log; figures of the draws become means since the last one."""
    found: list[dict[str, float]] = []
    since: list[Mapping[str, float]] = []
    for line in log:
        since.append(line)
        if not any(name.startswith("eval_") for name in line):
            continue
        names = dict.fromkeys(name for each in since for name in each)
        means = {
            name: sum(each[name] for each in since if name in each)
            / sum(name in each for each in since)
            for name in names
            if not name.startswith("eval_")
        }
        held = {name: value for name, value in line.items() if name.startswith("eval_")}
        found.append({**means, **held, "step": line["step"]})
        since = []
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value
