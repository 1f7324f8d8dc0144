"""Locks that are free in a forked process.

A fork copies locks as they are. One that another thread holds at that moment stays locked in the
child for ever, because the thread is not copied; `Lock` is replaced by a free one there.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

_ALL: weakref.WeakSet[Lock] = weakref.WeakSet()


class Lock:
    """A lock that one thread may take several times, and that is free after a fork."""

    def __init__(self) -> None:
        """Make a free lock."""
        self._lock = threading.RLock()
        _ALL.add(self)

    @contextmanager
    def held(self) -> Generator[None, None, None]:
        """Wait until the lock is free, and hold it in the block."""
        with self._lock:
            yield

    def renew(self) -> None:
        """Replace the lock by a free one; who holds the old one releases that."""
        self._lock = threading.RLock()


def _renew() -> None:
    for each in list(_ALL):
        each.renew()


_register: Any = getattr(os, "register_at_fork", None)  # Windows has no fork.
if _register is not None:
    _register(after_in_child=_renew)
