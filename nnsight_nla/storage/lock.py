"""Lock an output, so that two processes never write it at the same time."""

from __future__ import annotations

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import NLAError
from .atomic import KEPT, write_errors

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(
    path: Path, *, busy: str, advice: str = KEPT, error: type[NLAError] = NLAError
) -> Generator[None, None, None]:
    """Hold the lock file `path` while the block runs; a killed process releases it too.

    Args:
        path: The lock file; it is created if needed.
        busy: The message when another process holds the lock.
        advice: What the user can do when the lock file cannot be written.
        error: The class of the error.

    Raises:
        NLAError: Another process holds the lock, the file system has no locks, or the lock file
            cannot be written.
    """
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    with write_errors(path, advice=advice, error=error):
        try:
            lock.acquire()
        except Timeout as refused:
            raise error(busy) from refused
        except (OSError, NotImplementedError) as refused:
            if isinstance(refused, OSError) and refused.errno not in _NO_LOCKS:
                raise
            raise error(
                f"{path} cannot be locked ({refused}), so two processes could write the same "
                "output. Choose an output on a file system that supports locks."
            ) from refused
    try:
        yield
    finally:
        lock.release()
