"""Explain residuals of a language model in words, inside an nnsight trace."""

import importlib
from typing import TYPE_CHECKING, Any

from .models import anyio_first  # noqa: F401  (Before nnsight.)

# isort: split
from . import _moved, pairs, smollm2, tiny
from ._version import __version__
from .checkpoint.checkpoint import Checkpoint
from .checkpoint.origin import Origin
from .checkpoint.prompt import Prompt
from .core.answer_trust import AnswerTrust
from .core.baseline import Baseline
from .core.injection import Injection
from .core.sampling import Sampling
from .core.trust import Trust
from .errors import (
    CheckpointError,
    HostError,
    InjectionError,
    NLAError,
    NLAWarning,
    ReconstructionError,
    VerbalizationError,
)
from .evaluation.controls import Controls
from .explanation.handle import Explanation
from .explanation.records import Receipt
from .models.hosts import Positions
from .nla import NLA

if TYPE_CHECKING:
    from . import experiments
    from .evaluation.claims import Claim, Claims
    from .evaluation.compare import Comparison, Difference
    from .evaluation.score import Score
    from .experiments import Sweep
    from .reading.records import Reading, TokenReading

__all__ = [
    "NLA",
    "AnswerTrust",
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
    "Origin",
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
    "__version__",
    "experiments",
    "pairs",
    "smollm2",
    "tiny",
]


# Imported at their first use, for a quick `import nnsight_nla`.
_LATER = {
    "Claim": "evaluation.claims",
    "Claims": "evaluation.claims",
    "Comparison": "evaluation.compare",
    "Difference": "evaluation.compare",
    "Reading": "reading",
    "Score": "evaluation.score",
    "Sweep": "experiments",
    "TokenReading": "reading",
}
_moved.install()


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    if name == "experiments" or f"{__name__}.{name}" in _moved.MOVED:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
