"""Stop Python code of a stranger, such as a chat template, that does not end by itself.

A chat template is a program: two nested loops of 100,000 steps are within what jinja's sandbox
allows, and run for hours::

    with time_limit(5):
        text = tokenizer.apply_chat_template(messages)
"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any

TEMPLATE_SECONDS = 5.0
"""The time that rendering one chat template may take; real ones take milliseconds."""


@contextmanager
def time_limit(seconds: float) -> Generator[None, None, None]:
    """Raise in the code that the block calls, in this thread, once `seconds` have passed.

    Works in every thread and on every platform. It cannot interrupt a single call into C.

    Raises:
        TimeoutError: The time has passed.
    """
    end = time.monotonic() + seconds

    def watch(frame: FrameType, event: str, argument: Any) -> Any:  # noqa: ARG001
        if time.monotonic() > end:
            raise TimeoutError(f"it ran for more than {seconds:g} seconds")
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        yield
    finally:
        sys.settrace(before)
