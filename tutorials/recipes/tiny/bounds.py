"""The bounds that every figure of a good pair lies in; a build outside of them fails."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "reliability/strong/subject": (0.95, 1.0),
    "reliability/weak/subject": (0.0, 0.60),
    "interventions/patch/0/both": (0.90, 1.0),
    "interventions/patch/2/both": (0.0, 0.10),
    "interventions/patch/3/both": (0.0, 0.10),
    "interventions/patch/last, K/both": (0.90, 1.0),
    "interventions/ablate/before": (0.90, 1.0),
    "interventions/ablate/subject": (0.0, 0.10),
}
"""The least and the greatest value of each figure, by its path in the figures."""


def out_of_bounds(figures: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each figure that lies outside its `BOUNDS`."""
    complaints: list[str] = []
    for path, (low, high) in BOUNDS.items():
        value: Any = figures
        for key in path.split("/"):
            value = value[key]
        if not low <= value <= high:
            complaints.append(f"{path} is {value:.3f}, expected {low:g} to {high:g}.")
    return complaints
