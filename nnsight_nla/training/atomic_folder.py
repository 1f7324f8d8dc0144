"""Folders that are there as a whole or not at all, and a disk that is full.

A checkpoint is written under another name beside its own, brought to the disk, and renamed: a crash
leaves the old folder, or none, and never half of one::

    with whole("checkpoints/av") as folder:
        model.save_pretrained(folder)
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..checkpoint.sidecar import SIDECARS
from .rows import TrainingError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What safetensors and torch make of it: exceptions of their own, with the reason as text, or with
# what the file's end said of it.
_WORDS = (
    "No space left on device",
    "PytorchStreamWriter failed writing",
    "basic_ios::clear: iostream error",
    "inline_container.cc",
)


@contextmanager
def whole(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets the name `folder` when the block ends well.

    A checkpoint that has the name already is replaced then.

    Raises:
        TrainingError: `folder` holds something else than a checkpoint, or the disk is full.
    """
    folder = Path(folder).absolute()
    check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        with disk_errors(f"{folder} could not be written", "Nothing was left under that name"):
            yield part
            _to_disk(part)
        part.chmod(0o755)  # As a folder is made; a temporary one is its owner's alone.
        old = part.with_suffix(".old")
        if folder.exists():
            folder.rename(old)
        part.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
        _sync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def check_free(folder: Path) -> None:
    """Refuse a name that something else than a checkpoint has."""
    known = any((folder / name).is_file() for name in SIDECARS)
    if folder.exists() and not known and (folder.is_file() or any(folder.iterdir())):
        raise TrainingError(
            f"{folder} is there already and is no checkpoint. Choose another name, or remove it."
        )


@contextmanager
def disk_errors(what: str, then: str) -> Iterator[None]:
    """Say of a full disk what could not be written; other errors pass as they are."""
    try:
        yield
    except Exception as error:
        if not is_full(error):
            raise
        raise TrainingError(f"{what}: the disk is full. Free some space. {then}.") from error


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full."""
    return getattr(error, "errno", None) in _FULL or any(word in str(error) for word in _WORDS)


def _to_disk(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
