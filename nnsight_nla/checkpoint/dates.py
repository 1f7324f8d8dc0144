"""The date that a chat template prints, where it prints one.

A template may call ``strftime_now``, as those of Llama 3.1 do, so that the prompt changes from day
to day. A `Clock` replaces the system's clock: it returns one fixed moment, and records whether the
template asked for it::

    clock = Clock("2026-11-26")
    with clock.shown():
        tokenizer.apply_chat_template(messages, tokenize=False)
    clock.printed                              # "2026-11-26"; None if the template prints no date
"""

from __future__ import annotations

import datetime
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from .. import _compat
from ..core.locks import Lock
from ..errors import CheckpointError, shown

Date = str | datetime.date
"""A date, or a moment where a template prints the time of day too; a string is ISO 8601."""
TODAY = "today"
"""The source of a checkpoint's date that nobody chose; see `Checkpoint.source`."""
_LOCK = Lock()
# Two moments of one day that differ in everything that a format may print.
_EARLY, _LATE = datetime.time(1, 2, 3), datetime.time(14, 15, 16, 17)
# Two days likewise: weekday, day, month, year.
_PAST, _FUTURE = datetime.date(2001, 2, 3), datetime.date(2032, 11, 15)


def parse_date(date: Any) -> datetime.datetime:
    """Return a date, or a moment, as a moment; a date is its midnight.

    Raises:
        CheckpointError: It is neither.
    """
    if isinstance(date, datetime.datetime):
        return date
    if isinstance(date, datetime.date):
        return datetime.datetime.combine(date, datetime.time())
    try:
        return datetime.datetime.fromisoformat(date)
    except (TypeError, ValueError):
        raise CheckpointError(
            f"date={shown(date)}: expected a date such as '2026-11-26', or a moment such as "
            "'2026-11-26T09:30:00'."
        ) from None


def to_iso(date: Date) -> str:
    """Return the date, or the moment if it is not midnight, in ISO 8601."""
    moment = parse_date(date)
    midnight = moment.time() == datetime.time() and moment.tzinfo is None
    return moment.date().isoformat() if midnight else moment.isoformat()


class Clock:
    """A clock for a chat template, fixed at one moment."""

    def __init__(self, date: Date | None) -> None:
        """Set the clock; ``None`` is now."""
        self._moment = _now() if date is None else parse_date(date)
        self._dated = self._timed = False

    @contextmanager
    def shown(self) -> Generator[None, None, None]:
        """Show it to the chat templates that this thread renders in the block."""
        with _LOCK.held(), _compat.template_clock(self.strftime):
            yield

    def strftime(self, format: str) -> str:
        """Return the moment in a format of `datetime.datetime.strftime`."""
        day = self._moment.date()
        self._timed |= _at(day, _EARLY, format) != _at(day, _LATE, format)
        self._dated |= _at(_PAST, _EARLY, format) != _at(_FUTURE, _EARLY, format)
        return self._moment.strftime(format)

    @property
    def printed(self) -> str | None:
        """What a template printed so far, in ISO 8601: a date, a moment, or nothing (``None``)."""
        if self._timed:
            return self._moment.isoformat()
        return self._moment.date().isoformat() if self._dated else None


def _now() -> datetime.datetime:
    return datetime.datetime.now()


def _at(day: datetime.date, time: datetime.time, format: str) -> str:
    return datetime.datetime.combine(day, time).strftime(format)
