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
_HEAD, _TAIL = 3000, 900
"""The most characters of a message, at its beginning and at its end."""


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

    def __init__(self, *args: Any) -> None:
        """Keep the beginning and the end of a message that quotes too much of a file."""
        super().__init__(*(_cut(each) if isinstance(each, str) else each for each in args))


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


def shown(value: object) -> str:
    """Return a short `repr` of a value that may come from a stranger's file.

    >>> shown({"layer": list(range(1000))})
    "{'layer': [0, 1, 2, 3, 4, 5, ...]}"
    """
    try:
        return _SHORT.repr(value)
    except Exception as error:  # An integer of too many digits has no repr.
        return f"<{type(value).__name__} without a repr: {type(error).__name__}>"


_SHORT = reprlib.Repr()
_SHORT.maxother = _SHORT.maxlong = 200
_SHORT.maxstring = 1200  # A prompt template fits.
_SHORT.maxlevel = 3


def _cut(message: str) -> str:
    if len(message) <= _HEAD + _TAIL:
        return message
    left = len(message) - _HEAD - _TAIL
    return f"{message[:_HEAD]} [... {left} characters ...] {message[-_TAIL:]}"


class NLAWarning(UserWarning):
    """A reason to read an explanation with care."""
