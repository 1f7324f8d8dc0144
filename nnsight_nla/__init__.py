"""Natural Language Autoencoders as ordinary values of an nnsight experiment."""

import importlib
from typing import TYPE_CHECKING, Any

from . import tiny
from .baseline import Baseline
from .capture import Receipt
from .checkpoint import Checkpoint
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
from .sampling import Sampling
from .trust import Trust

if TYPE_CHECKING:
    from . import experiments
    from .claims import Claim, Claims
    from .compare import Comparison, Difference
    from .experiments import Sweep
    from .reading import Reading, TokenReading
    from .score import Score

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


# Imported when they are first named: most sessions use few of them, and an import should be quick.
_LATER = {
    "Claim": "claims",
    "Claims": "claims",
    "Comparison": "compare",
    "Difference": "compare",
    "Reading": "reading",
    "Score": "score",
    "Sweep": "experiments",
    "TokenReading": "reading",
    "experiments": "experiments",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_LATER[name]}", __name__)
    return module if name == "experiments" else getattr(module, name)


def __dir__() -> list[str]:
    return __all__
