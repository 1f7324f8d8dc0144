"""Waiting for an NDIF host that went away: hours, where `ndif.send` waits for seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..remote.ndif import transient

T = TypeVar("T")

PATIENCE = 3600.0
"""How long one step waits in all for a host to come back, in seconds."""
_LONGEST = 30.0


def patiently(
    step: Callable[[], T],
    say: Callable[[str], None],
    stop: threading.Event | None = None,
    patience: float = PATIENCE,
) -> T:
    """Run `step` again while its host is only away.

    Args:
        step: May be run again: what it had settled stays settled.
        say: Told that the host is away, once per wait.
        stop: Set by who no longer wants the result.
        patience: Seconds to wait in all.
    """
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception,
        sleep_using_event,
        wait_exponential,
    )

    stopped = stop or threading.Event()

    def tell(state: RetryCallState) -> None:
        say(f"the host is away; trying again in {state.upcoming_sleep:.0f} s")

    retrying = Retrying(
        stop=lambda state: stopped.is_set() or state.idle_for >= patience,
        sleep=sleep_using_event(stopped),
        wait=wait_exponential(multiplier=1, max=_LONGEST),
        retry=retry_if_exception(away),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(step)


def away(error: BaseException) -> bool:
    """Whether a host that is away is at the bottom of `error`."""
    seen: BaseException | None = error
    while seen is not None:
        if transient(seen):
            return True
        seen = seen.__cause__
    return False
