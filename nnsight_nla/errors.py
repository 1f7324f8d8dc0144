"""The exceptions and the warning of this package.

Every exception derives from `NLAError`, so one ``except`` catches them all. Its message says what
arrived, what was expected and what to type next::

    try:
        nla = NLA("my/checkpoint")
    except NLAError as error:
        print(error)
"""

import reprlib
from typing import Any

_HEAD, _TAIL = 3000, 900
"""The maximum length of the beginning and of the end of a message, in characters."""
_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxstring = 1200  # A prompt template fits.
_SHORT.maxlevel = 3


def shown(value: object) -> str:
    """Return a short `repr` of a value from a caller or from an untrusted file.

    >>> shown({"layer": list(range(1000))})
    "{'layer': [0, 1, 2, 3, 4, 5, ...]}"
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{type(value).__name__} of shape {list(shape)} and dtype {dtype}"
    try:
        return _SHORT.repr(value)
    except Exception as error:  # An integer of too many digits has no repr.
        return f"<{type(value).__name__} without a repr: {type(error).__name__}>"


def _cut(message: str) -> str:
    if len(message) <= _HEAD + _TAIL:
        return message
    left = len(message) - _HEAD - _TAIL
    return f"{message[:_HEAD]} [... {left} characters ...] {message[-_TAIL:]}"


class NLAError(Exception):
    """The base class of every error that nnsight_nla raises on purpose."""

    def __init__(self, *args: Any) -> None:
        """Cut the middle of a message that quotes too much of a file."""
        super().__init__(*(_cut(each) if isinstance(each, str) else each for each in args))


class CheckpointError(NLAError):
    """A checkpoint's sidecar, tokenizer, weights or prompt cannot be used."""


class InjectionError(NLAError):
    """A vector cannot be read from the target, or cannot be written into the verbalizer."""


class VerbalizationError(NLAError):
    """Some vectors have no text: they are unusable, or generation failed."""


class ReconstructionError(NLAError):
    """A text cannot be turned back into a vector, or cannot be compared with one."""


class TextError(ReconstructionError):
    """This text cannot be turned back into a vector, now or later; others may be."""


class ExperimentError(NLAError):
    """The arguments of an experiment do not fit, or it stopped before its last cell."""

    partial: Any = None
    """The `Sweep` with the finished cells, if it stopped before the last one."""


class HostError(NLAError):
    """An NDIF host did not answer, or a request failed there."""


class NLAWarning(UserWarning):
    """A reason to read an explanation with caution."""
