"""What can go wrong, under one root.

Every error raised on what a user passed is an `NLAError`, so one ``except`` catches them all. Its
message says what arrived, what was expected and what to type next.
"""

from typing import Any


class NLAError(Exception):
    """The root of every error that nnsight_nla raises on purpose."""


class CheckpointError(NLAError):
    """A checkpoint's sidecar, tokenizer, weights or prompt cannot be used as they are."""


class InjectionError(NLAError):
    """A vector cannot be read where it should be, or not written where the verbalizer wants it."""


class VerbalizationError(NLAError):
    """Some vectors have no text: they are unusable themselves, or generating for them failed."""


class ReconstructionError(NLAError):
    """A text cannot be turned back into a vector, or not be held against one."""


class ExperimentError(NLAError):
    """An experiment does not fit its arguments, or it stopped before its last cell."""

    partial: Any = None
    """The `Sweep` with the finished cells, where it stopped before the last one."""


class HostError(NLAError):
    """An NDIF host stayed away, or a request failed there."""


class NLAWarning(UserWarning):
    """Something a careful reader of an explanation should know."""
