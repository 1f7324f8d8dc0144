"""Natural Language Autoencoders as ordinary values of an nnsight experiment."""

import importlib
from typing import TYPE_CHECKING, Any

from . import tiny
from .baseline import Baseline
from .capture import Receipt
from .checkpoint import Checkpoint
from .claims import Claim, Claims
from .compare import Comparison, Difference
from .controls import Controls
from .errors import (
    CheckpointError,
    HostError,
    InjectionError,
    NLAError,
    NLAWarning,
    ReconstructionError,
    VerbalizationError,
)
from .explanation import Explanation
from .hosts import Positions
from .injection import Injection
from .nla import NLA
from .prompting import Prompt
from .reading import Reading, TokenReading
from .sampling import Sampling
from .score import Score
from .trust import Trust

if TYPE_CHECKING:
    from . import experiments
    from .experiments import Sweep

__all__ = [
    "NLA",
    "Baseline",
    "Checkpoint",
    "CheckpointError",
    "Claim",
    "Claims",
    "Comparison",
    "Controls",
    "Difference",
    "Explanation",
    "HostError",
    "Injection",
    "InjectionError",
    "NLAError",
    "NLAWarning",
    "Positions",
    "Prompt",
    "Reading",
    "Receipt",
    "ReconstructionError",
    "Sampling",
    "Score",
    "Sweep",
    "TokenReading",
    "Trust",
    "VerbalizationError",
    "experiments",
    "tiny",
]


def __getattr__(name: str) -> Any:
    """The experiments are imported when they are first named: most sessions run none."""
    if name not in ("experiments", "Sweep"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    experiments = importlib.import_module(".experiments", __name__)
    return experiments if name == "experiments" else experiments.Sweep
