"""Write a file or a folder that appears under its name once it is complete, or not at all.

The content goes to a temporary name in the same folder, is flushed to the disk, and is then
renamed. A crash, a full disk or Ctrl-C leaves what was there before::

    with atomic_file(Path("out.parquet")) as file:
        pq.write_table(table, file)
    with atomic_folder(Path("checkpoints/av")) as folder:
        model.save_pretrained(folder)
"""

from __future__ import annotations

import errno
import glob
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

from ..errors import NLAError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_PROBE = 1 << 16
KEPT = "What was there before is unchanged."
"""What a failed write means, unless the caller says something more helpful."""


@contextmanager
def atomic_file(
    path: Path, *, advice: str = KEPT, error: type[NLAError] = NLAError
) -> Generator[IO[bytes], None, None]:
    """Open a file that replaces `path` when the block ends without an exception.

    Args:
        path: The final name; its folder exists.
        advice: What the user can do after a failed write; the end of the message.
        error: The class of the error.

    Raises:
        NLAError: The disk is full, or the file cannot be written.
    """
    path = path.resolve() if path.is_symlink() else path  # The link stays.
    with write_errors(path, advice=advice, error=error):
        temporary = _unused(path, "tmp")
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
        _sync(path.parent)


@contextmanager
def atomic_folder(
    folder: Path, *, advice: str = KEPT, error: type[NLAError] = NLAError
) -> Generator[Path, None, None]:
    """Make a folder that replaces `folder` when the block ends without an exception.

    Args:
        folder: The final name. The caller has checked that what is there may be replaced.
        advice: What the user can do after a failed write; the end of the message.
        error: The class of the error.

    Yields:
        The temporary folder to write into.

    Raises:
        NLAError: The disk is full, or the folder cannot be written.
    """
    folder = folder.absolute()
    with write_errors(folder, advice=advice, error=error):
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = _unused(folder, "part")
        try:
            part.mkdir()
            yield part
            for path in sorted(part.rglob("*")):
                _sync(path)
            _sync(part)
            _replace(folder, part)
            _sync(folder.parent)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def remove_leftovers(path: Path) -> None:
    """Delete what a killed process left of writing `path`; nothing else may be writing it.

    A folder that was complete and about to get its name gets it.
    """
    named = f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}"
    for left in path.parent.glob(f"{named}.tmp"):
        left.unlink(missing_ok=True)
    for old in path.parent.glob(f"{named}.old"):  # Killed between the renames of `_replace`.
        part = old.with_suffix(".part")
        if not path.exists():
            (part if part.exists() else old).rename(path)
        shutil.rmtree(old, ignore_errors=True)
    for part in path.parent.glob(f"{named}.part"):
        shutil.rmtree(part, ignore_errors=True)


@contextmanager
def write_errors(
    path: Path, *, advice: str = KEPT, error: type[NLAError] = NLAError
) -> Generator[None, None, None]:
    """Turn a failed write of `path` into an error that says what to do.

    safetensors and torch raise exceptions of their own on a full disk, without an error number.
    Whether the disk is full is therefore found out by writing to it.

    Raises:
        NLAError: In place of an `OSError`, or of any exception on a full disk.
    """
    try:
        yield
    except NLAError:
        raise
    except Exception as problem:
        if is_full(problem, path.parent):
            raise error(
                f"The disk of {path.parent} is full: {path.name} could not be written. Free some "
                f"space. {advice}"
            ) from problem
        if isinstance(problem, OSError):
            reason = problem.strerror or problem
            raise error(f"{path} cannot be written ({reason}). {advice}") from problem
        raise


def is_full(problem: BaseException, folder: Path) -> bool:
    """Return whether `problem` came from a full disk; `folder` lies on that disk."""
    number = getattr(problem, "errno", None)
    if number is not None:
        return number in _FULL
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE))
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as refused:
        return refused.errno in _FULL
    return False


def _replace(folder: Path, part: Path) -> None:
    """Rename `part` to `folder`; a folder of that name comes back where this fails."""
    old = part.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    try:
        part.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk; Windows cannot open a folder."""
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if path.is_file() and os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unused(path: Path, suffix: str) -> Path:
    """Return a hidden name next to `path`, on the same disk, that nothing else has."""
    return path.with_name(f".{path.name}.{uuid4().hex[:12]}.{suffix}")
