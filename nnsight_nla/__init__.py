"""Natural Language Autoencoders as ordinary values of an nnsight experiment."""

from . import tiny
from .capture import Receipt
from .checkpoint import Checkpoint
from .controls import Controls
from .errors import (
    CheckpointError,
    HostError,
    InjectionError,
    NLAError,
    NLAWarning,
    VerbalizationError,
)
from .explanation import Explanation
from .hosts import Positions
from .injection import Injection
from .nla import NLA
from .prompting import Prompt
from .sampling import Sampling

__all__ = [
    "NLA",
    "Checkpoint",
    "CheckpointError",
    "Controls",
    "Explanation",
    "HostError",
    "Injection",
    "InjectionError",
    "NLAError",
    "NLAWarning",
    "Positions",
    "Prompt",
    "Receipt",
    "Sampling",
    "VerbalizationError",
    "tiny",
]
