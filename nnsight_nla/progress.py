"""Show how far a long piece of work is: one bar on standard error, after the first second.

There is one bar at a time: a bar that is opened inside another one is silent. Nothing is shown
without a terminal or a notebook::

    with progress("verbalizing", total=len(rows), unit="text") as bar:
        for row in rows:
            ...
            bar.advance(1)
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_OPEN = threading.local()


class Bar:
    """A running count with its rate, the time left, and a note."""

    def __init__(self, bar: Any) -> None:
        """Wrap a tqdm bar; made by `progress`."""
        self._bar = bar

    def advance(self, done: int, note: str | None = None) -> None:
        """Count `done` more; show `note` until the next call."""
        if note is not None:
            self.note(note)
        self._bar.update(done)

    def note(self, text: str) -> None:
        """Show a note behind the bar."""
        self._bar.set_postfix_str(text, refresh=False)


@contextmanager
def progress(
    what: str, *, total: int | None, unit: str, shown: bool = True, initial: int = 0
) -> Generator[Bar, None, None]:
    """Open a progress bar.

    Args:
        what: A word for the work.
        total: How many units there are; ``None`` where that is not known.
        unit: What is counted, in the singular.
        shown: Whether to show it at all.
        initial: How many units are done already.
    """
    from tqdm.std import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    inside = getattr(_OPEN, "bar", False)
    bar = tqdm(
        total=total, desc=what, unit=unit, delay=1, leave=False, initial=initial,
        disable=not (shown and watched) or inside,
    )  # fmt: skip
    _OPEN.bar = True
    try:
        with bar:
            yield Bar(bar)
    finally:
        _OPEN.bar = inside
