"""Lock an output, so that two processes never write it at the same time."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import NLAError


@contextmanager
def locked(
    path: Path, *, busy: str, error: type[NLAError] = NLAError
) -> Generator[None, None, None]:
    """Hold the lock file `path` while the block runs; released also when the process is killed.

    Args:
        path: The lock file; made if it is not there, and left there.
        busy: The message when another process holds the lock.
        error: The class of the error.

    Raises:
        NLAError: Another process holds the lock, or the file system has no locks.
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as refused:
        raise error(busy) from refused
    except (OSError, NotImplementedError) as refused:
        raise error(
            f"{path} cannot be locked ({refused}), so two processes could write the same output. "
            "Choose an output on a file system that supports locks."
        ) from refused
    try:
        yield
    finally:
        lock.release()
