"""Evaluate explanations: reconstruction, scores, trust labels, claims, controls and truth.

>>> from nnsight_nla.evaluation import grounded, over_length, read_rows
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .calibrating import calibrate, noisy_positions, validated
    from .grounding.endpoint_judge import EndpointJudge
    from .grounding.forms import Form, Line
    from .grounding.judge import Judge
    from .grounding.local_judge import LocalJudge
    from .grounding.measure import grounded
    from .grounding.rows import GroundedRow, GroundedRows, from_records, read_rows
    from .length import over_length
    from .picture import plot_reliability, plot_scores

__all__ = [
    "EndpointJudge",
    "Form",
    "GroundedRow",
    "GroundedRows",
    "Judge",
    "Line",
    "LocalJudge",
    "calibrate",
    "from_records",
    "grounded",
    "noisy_positions",
    "over_length",
    "plot_reliability",
    "plot_scores",
    "read_rows",
    "validated",
]
_MODULES = {
    "calibrating": ("calibrate", "noisy_positions", "validated"),
    "grounding.endpoint_judge": ("EndpointJudge",),
    "grounding.forms": ("Form", "Line"),
    "grounding.judge": ("Judge",),
    "grounding.local_judge": ("LocalJudge",),
    "grounding.measure": ("grounded",),
    "grounding.rows": ("GroundedRow", "GroundedRows", "from_records", "read_rows"),
    "length": ("over_length",),
    "picture": ("plot_reliability", "plot_scores"),
}


def __getattr__(name: str) -> Any:
    # Imported at the first use, so that the package imports quickly.
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
