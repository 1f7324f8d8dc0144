"""The exceptions and the warning of this package.

Every exception derives from `NLAError`, so one ``except`` catches them all. Its message says what
arrived, what was expected and what to type next::

    try:
        nla = NLA("my/checkpoint")
    except NLAError as error:
        print(error)
"""

from typing import Any


class NLAError(Exception):
    """The base class of every error that nnsight_nla raises on purpose."""


class CheckpointError(NLAError):
    """A checkpoint's sidecar, tokenizer, weights or prompt cannot be used."""


class InjectionError(NLAError):
    """A vector cannot be read from the target, or cannot be written into the verbalizer."""


class VerbalizationError(NLAError):
    """Some vectors have no text: they are unusable, or generation failed."""


class ReconstructionError(NLAError):
    """A text cannot be turned back into a vector, or cannot be compared with one."""


class ExperimentError(NLAError):
    """An experiment does not fit its arguments, or it stopped before its last cell."""

    partial: Any = None
    """The `Sweep` with the finished cells, where it stopped before the last one."""


class HostError(NLAError):
    """An NDIF host did not answer, or a request failed there."""


class NLAWarning(UserWarning):
    """A reason to read an explanation with care."""
