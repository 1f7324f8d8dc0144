"""Check the messages that a page sends.

A message is a JSON object with a ``type`` and an ``id``, a number that the page chose; see
`session` for the types. Everything in it is untrusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from ..core.numeric import is_int, is_real, is_unicode
from ..errors import NLAError, shown

LONGEST = 200_000
"""The most characters of a message."""
TYPES = ("explain", "cancel", "open", "compare", "patch", "steer")
MOST_SAMPLES = 16
_MOST_DOSE = 1000.0


class MessageError(NLAError):
    """A message that cannot be understood; `id` is its number, where it has one."""

    id: int | None = None


def parsed(raw: str | bytes | Mapping[str, Any]) -> dict[str, Any]:
    """Return a message as a mapping with a known ``type`` and an ``id``.

    Raises:
        MessageError: It is too long, not a JSON object, or of an unknown type.
    """
    if isinstance(raw, str | bytes):
        if len(raw) > LONGEST:
            raise MessageError(
                f"The message has {len(raw):,} characters; at most {LONGEST:,} are read. Shorten "
                "the text."
            )
        try:
            raw = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise MessageError(f"The message is not JSON: {error}.") from error
    if not isinstance(raw, Mapping):
        raise MessageError(f"The message is {shown(raw)}: expected a JSON object.")
    message = dict(raw)
    if not is_int(message.get("id"), 0):
        raise MessageError(f"id={shown(message.get('id'))}: expected a whole number from 0.")
    if message.get("type") not in TYPES:
        error = MessageError(
            f"type={shown(message.get('type'))}: expected one of {', '.join(TYPES)}."
        )
        error.id = message["id"]
        raise error
    return message


def text_of(message: Mapping[str, Any]) -> str:
    """Return the text of a message.

    Raises:
        MessageError: It has none.
    """
    text = message.get("text")
    if not isinstance(text, str) or not text.strip():
        raise MessageError(f"text={shown(text)}: expected a text that is not empty.")
    if not is_unicode(text):
        raise MessageError(f"text={shown(text)}: expected characters of Unicode.")
    return text


def samples_of(message: Mapping[str, Any]) -> int:
    """Return the number of samples of a message, 1 unless given.

    Raises:
        MessageError: It is not a whole number from 1 to `MOST_SAMPLES`.
    """
    samples = message.get("samples", 1)
    if not is_int(samples, 1) or samples > MOST_SAMPLES:
        raise MessageError(
            f"samples={shown(samples)}: expected a whole number from 1 to {MOST_SAMPLES}."
        )
    return samples


def dose_of(message: Mapping[str, Any]) -> float:
    """Return the dose of a message.

    Raises:
        MessageError: It is not a finite number.
    """
    dose = message.get("dose")
    if not is_real(dose) or not abs(cast("float", dose)) <= _MOST_DOSE:
        raise MessageError(
            f"dose={shown(dose)}: expected a number from -{_MOST_DOSE:g} to {_MOST_DOSE:g}."
        )
    return float(cast("float", dose))


def pair_of(message: Mapping[str, Any], name: str) -> tuple[Any, Any]:
    """Return a field that is a run and a position.

    Raises:
        MessageError: It is something else.
    """
    given = message.get(name)
    if not isinstance(given, list) or len(cast("list[Any]", given)) != 2:
        raise MessageError(f"{name}={shown(given)}: expected [run, position].")
    run, position = cast("list[Any]", given)
    return run, position
