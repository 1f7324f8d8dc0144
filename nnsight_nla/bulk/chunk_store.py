"""What is done: a folder of finished chunks beside the output, each complete or absent.

A file is written under another name, brought to the disk, and renamed; so at any moment, whatever
is killed, a name stands for a whole file. The folder also holds the manifest of what is being made,
and a lock, which the system gives back when its holder dies::

    out.parquet.parts/    manifest.json  lock  000000.parquet  000001.parquet  ...
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import NLAError
from .manifest import check_same

SUFFIX = ".parts"
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Parts:
    """The finished chunks of one output."""

    def __init__(self, output: Path) -> None:
        """Look at the folder that belongs to `output`; nothing is made yet."""
        self.folder = output.with_name(output.name + SUFFIX)
        self._output = output

    @property
    def manifest(self) -> dict[str, Any] | None:
        """What the chunks here were made from, ``None`` where nothing was begun."""
        file = self.folder / "manifest.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else None

    @contextlib.contextmanager
    def open(self, manifest: dict[str, Any]) -> Generator[None, None, None]:
        """Hold the folder: begin it with `manifest`, or go on where it has the same.

        Raises:
            NLAError: Another process holds it, it was begun with other settings (they are listed),
                or it cannot be written.
        """
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            lock = (self.folder / "lock").open("w")
        with lock:
            _hold(lock, self._output)
            for left in self.folder.glob("*.tmp"):
                left.unlink()
            begun = self.manifest
            if begun is None:
                with atomic(self.folder / "manifest.json") as file:
                    file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
            else:
                check_same(begun, manifest, self.folder)
            yield

    def path(self, number: int) -> Path:
        """Where chunk `number` lies, or will."""
        return self.folder / f"{number:06d}.parquet"

    def numbers(self) -> list[int]:
        """The finished chunks, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.parquet"))

    def write(self, number: int, table: pa.Table) -> None:
        """Finish chunk `number`."""
        with atomic(self.path(number)) as file:
            # Vectors do not compress, and a chunk is read once.
            pq.write_table(table, file, compression="lz4")

    def read(self, number: int) -> pa.Table:
        """Chunk `number` again."""
        return pq.ParquetFile(self.path(number)).read()

    def remove(self) -> None:
        """Forget the chunks, once the output is whole."""
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def atomic(path: Path) -> Generator[IO[bytes], None, None]:
    """A file that appears under its name when it is whole and on the disk, or not at all.

    Raises:
        NLAError: The disk is full, or the place cannot be written; what was there is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Say what a failed write means for the user.

    Raises:
        NLAError: In place of an `OSError`.
    """
    try:
        yield
    except OSError as error:
        kept = "What is finished is kept; type the same command to go on"
        if error.errno in _FULL:
            raise NLAError(
                f"The disk of {path.parent} is full: {path.name} could not be written. {kept} "
                "once there is room."
            ) from error
        raise NLAError(
            f"{path} cannot be written ({error.strerror or error}). {kept} once it can be, or "
            "choose another output."
        ) from error


def _hold(lock: IO[str], output: Path) -> None:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NLAError(
            f"Another process is writing {output}. Wait for it, end it, or choose another output; "
            "two machines share the work with --shard 1/2 and --shard 2/2."
        ) from error
    except OSError:  # A file system without locks.
        return
