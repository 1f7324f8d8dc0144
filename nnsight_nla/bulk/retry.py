"""Retry a step while its host or server is away: up to an hour, where a request waits seconds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..remote.ndif import transient

T = TypeVar("T")

MAX_WAIT = 3600.0
"""How long one step waits for its host in all, in seconds."""
_LONGEST_WAIT = 30.0


def retry_while_away(
    step: Callable[[], T], note: Callable[[str], None], stop: threading.Event
) -> T:
    """Run `step` again as long as it fails only because its host is away.

    Args:
        step: Can be run again; what it has already settled stays settled.
        note: Receives a message before each wait.
        stop: Ends the waiting when it is set.
    """
    from tenacity import (
        RetryCallState,
        Retrying,
        retry_if_exception,
        sleep_using_event,
        wait_exponential,
    )

    def tell(state: RetryCallState) -> None:
        note(f"the host is away; trying again in {state.upcoming_sleep:.0f} s")

    retrying = Retrying(
        stop=lambda state: stop.is_set() or state.idle_for >= MAX_WAIT,
        sleep=sleep_using_event(stop),
        wait=wait_exponential(multiplier=1, max=_LONGEST_WAIT),
        retry=retry_if_exception(host_is_away),
        before_sleep=tell,
        reraise=True,
    )
    return retrying(step)


def host_is_away(error: BaseException) -> bool:
    """Return whether `error`, or one of its causes, says that the host is away."""
    seen: BaseException | None = error
    while seen is not None:
        if transient(seen):
            return True
        seen = seen.__cause__
    return False
