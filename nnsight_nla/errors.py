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

_SHOWN = 80
"""The most characters of a value in a message."""


def shown(value: object) -> str:
    """Describe a value in a message: bounded and on one line, whatever it is.

    >>> shown("last"), shown(["a"] * 1000), len(shown("a" * 1000))
    ("'last'", "['a', 'a', 'a', 'a', 'a', 'a', ...]", 80)
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{type(value).__name__} of shape {list(shape)} and dtype {dtype}"
    writer = reprlib.Repr()
    writer.maxlevel, writer.maxstring, writer.maxother = 3, _SHOWN, _SHOWN
    text = " ".join(writer.repr(value).split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


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
