"""Crash-safe store of finished chunks, in a folder next to the output.

Each chunk is complete or absent, whenever the process is killed. The folder also holds the manifest
of the output, and a lock that the operating system releases when its holder dies::

    out.parquet.parts/    manifest.json  lock  000000.parquet  000001.parquet  ...
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..storage.atomic import atomic_file, write_errors
from ..storage.lock import locked
from .manifest import check_same

SUFFIX = ".parts"
ADVICE = "What is finished is kept: rerun with the same arguments, or choose another output."
"""What the user can do after a failed write."""


class ChunkStore:
    """The finished chunks of one output."""

    def __init__(self, output: Path) -> None:
        """Point to the folder that belongs to `output`; nothing is created yet."""
        self.folder = output.with_name(output.name + SUFFIX)
        self._output = output

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the chunks, ``None`` where there is none yet."""
        file = self.folder / "manifest.json"
        return json.loads(file.read_text("utf-8")) if file.is_file() else None

    @contextmanager
    def open(self, manifest: dict[str, Any]) -> Generator[None, None, None]:
        """Lock the folder, and check that its chunks have this manifest.

        Raises:
            NLAError: Another process holds the lock, the manifest is a different one (the
                differences are listed), or the folder cannot be written.
        """
        with write_errors(self.folder, advice=ADVICE):
            self.folder.mkdir(exist_ok=True)
        busy = (
            f"Another process is writing {self._output}. Wait for it, end it, or choose another "
            'output. To share the work between two machines, pass shard="1/2" on one and '
            'shard="2/2" on the other.'
        )
        with locked(self.folder / "lock", busy=busy, advice=ADVICE):
            for left in self.folder.glob("*.tmp"):
                left.unlink()
            before = self.manifest
            if before is None:
                with atomic_file(self.folder / "manifest.json", advice=ADVICE) as file:
                    file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
            else:
                check_same(before, manifest, self.folder)
            yield

    def numbers(self) -> list[int]:
        """Return the numbers of the finished chunks, in order."""
        return sorted(int(path.stem) for path in self.folder.glob("*.parquet"))

    def write(self, number: int, table: pa.Table) -> None:
        """Store chunk `number`."""
        with atomic_file(self._path(number), advice=ADVICE) as file:
            # Vectors do not compress, and a chunk is read once.
            pq.write_table(table, file, compression="lz4")

    def read(self, number: int) -> pa.Table:
        """Load chunk `number`."""
        return pq.ParquetFile(self._path(number)).read()

    def remove(self) -> None:
        """Delete the folder, once the output is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"
