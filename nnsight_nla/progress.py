"""Show the progress of long work: one bar on standard error, after the first second.

There is one bar at a time in a process: a bar that is opened while another one is open is silent.
Nothing is shown without a terminal or a notebook::

    with progress("verbalizing", total=len(rows), unit="text") as bar:
        for row in rows:
            ...
            bar.advance(1)
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

_DELAY = 1.0
"""Seconds before a bar is shown."""
_INTERVAL = 0.1
"""Seconds between two updates of what is shown."""
_ONE_BAR = threading.Lock()


class Bar:
    """A running count with its rate, the time left, and a note."""

    def __init__(self, bar: Any) -> None:
        """Wrap a tqdm bar; made by `progress`."""
        self._bar = bar

    def advance(self, done: int, note: str | None = None) -> None:
        """Count `done` more units; `note` replaces the note."""
        if note is not None:
            self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done)

    def note(self, text: str) -> None:
        """Show a note after the count, at once."""
        self._bar.set_postfix_str(text)


@cache
def _kind() -> Any:
    """Return a tqdm class whose lock is not shared with forked processes.

    tqdm's own lock is, and stays locked for ever if such a process is killed while it draws.
    """
    from tqdm.std import tqdm

    class Ours(tqdm):
        monitor_interval = 0  # Every update is drawn, so no thread has to watch for missed ones.

    def renew() -> None:
        Ours.set_lock(threading.RLock())

    renew()
    register: Any = getattr(os, "register_at_fork", None)  # Windows has no fork.
    if register is not None:
        register(after_in_child=renew)
    return Ours


@contextmanager
def progress(
    what: str, *, total: int | None, unit: str, shown: bool = True, initial: int = 0
) -> Generator[Bar, None, None]:
    """Open a progress bar.

    Args:
        what: A word for the work.
        total: How many units there are; ``None`` where that is not known.
        unit: What is counted, in the singular.
        shown: Whether to show it; a bar that is not shown still silences those inside it.
        initial: How many units are done already.
    """
    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    first = _ONE_BAR.acquire(blocking=False)
    try:
        # miniters: a chunk may take minutes, so no update is skipped to save time.
        with _kind()(
            total=total, desc=what, unit=unit, delay=_DELAY, leave=False, initial=initial,
            miniters=1, mininterval=_INTERVAL, disable=not (shown and watched and first),
        ) as bar:  # fmt: skip
            yield Bar(bar)
    finally:
        if first:
            _ONE_BAR.release()
