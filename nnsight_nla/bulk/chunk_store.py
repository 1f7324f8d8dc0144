"""Crash-safe store of finished chunks, in a folder next to the output.

Whenever the process is killed, each chunk is either complete or absent. Its name ends in a hash of
its content, its number and the manifest. The folder also holds the manifest, and a lock that the
operating system releases when its holder dies::

    out.parquet.parts/    manifest.json  lock  000000-<hash>.parquet  000001-<hash>.parquet  ...
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from ..errors import NLAError
from ..storage.atomic import atomic_file, write_errors
from ..storage.lock import locked
from .manifest import check_same

SUFFIX = ".parts"
_CHUNK = re.compile(r"(\d{6,})-[0-9a-f]{24}\.parquet")
_LEFT = re.compile(rf"\.({_CHUNK.pattern}|manifest\.json)\.[0-9a-f]{{12}}\.tmp")
ADVICE = "What is finished is kept: rerun with the same arguments, or choose another output."
"""Advice for the user after a failed write."""


class ChunkStore:
    """The finished chunks of one output."""

    def __init__(self, output: Path) -> None:
        """Point to the folder that belongs to `output`; nothing is created yet."""
        self.folder = output.with_name(output.name + SUFFIX)
        self._output = output
        self._key = ""

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the chunks, ``None`` where there is none yet."""
        file = self.folder / "manifest.json"
        if not file.is_file():
            return None
        try:
            found = json.loads(file.read_text("utf-8"))
        except ValueError as error:
            found = error
        if not isinstance(found, dict):
            raise NLAError(
                f"{file} is not a manifest of this package ({found}). Move {self.folder} away, or "
                "choose another output."
            )
        return cast("dict[str, Any]", found)

    @contextmanager
    def open(self, manifest: dict[str, Any]) -> Generator[None, None, None]:
        """Lock the folder, and check that its chunks have this manifest.

        Raises:
            NLAError: Another process holds the lock, the manifest is a different one (the
                differences are listed), the folder holds other files, or it cannot be written.
        """
        self._refuse_other_files()
        with write_errors(self.folder, advice=ADVICE):
            self.folder.mkdir(exist_ok=True)
        busy = (
            f"Another process is writing {self._output}. Wait for it, end it, or choose another "
            'output. To share the work between two machines, pass shard="1/2" on one and '
            'shard="2/2" on the other.'
        )
        with locked(self.folder / "lock", busy=busy, advice=ADVICE):
            for left in self.folder.iterdir():
                if _LEFT.fullmatch(left.name):
                    left.unlink()
            before = self.manifest
            if before is None:
                with atomic_file(self.folder / "manifest.json", advice=ADVICE) as file:
                    file.write(json.dumps(manifest, indent=1, ensure_ascii=False).encode())
            else:
                check_same(before, manifest, self.folder)
            self._key = _key(before or manifest)
            yield

    def numbers(self) -> list[int]:
        """Return the numbers of the finished chunks, in order."""
        return sorted(self._paths())

    def write(self, number: int, parts: Iterable[pa.Table]) -> int:
        """Store chunk `number`, under a name that says what is in it.

        Args:
            number: The number of the chunk.
            parts: Its rows, in at least one table; only one at a time is in memory.

        Returns:
            The number of rows.
        """
        content, rows = io.BytesIO(), 0
        writer: pq.ParquetWriter | None = None
        for part in parts:
            # Vectors do not compress, and a chunk is read once.
            writer = writer or pq.ParquetWriter(content, part.schema, compression="lz4")
            writer.write_table(part, row_group_size=max(len(part), 1))
            rows += len(part)
        if writer is not None:
            writer.close()
        path = self.folder / f"{number:06d}-{self._digest(number, content.getbuffer())}.parquet"
        with atomic_file(path, advice=ADVICE) as file:
            file.write(content.getbuffer())
        return rows

    def check(self, expected: Collection[int]) -> None:
        """Check that these chunks are there, and no others; `read` checks what is in them.

        Raises:
            NLAError: One is missing, or not a chunk of this output.
        """
        found = self._paths()
        missing = sorted(set(expected) - set(found))
        more = [found[number].name for number in sorted(set(found) - set(expected))]
        if missing or more:
            listed = [f"chunk {number} is missing" for number in missing[:5]]
            listed += [f"{name} is not one of its chunks" for name in more[:5]]
            raise NLAError(
                f"Something else changed {self.folder} while it was written: {'; '.join(listed)}. "
                f"{'Move what does not belong there away, then rerun' if more else 'Rerun'} with "
                "the same arguments; only chunks that are missing are made again."
            )

    def read(self, number: int) -> Iterator[pa.Table]:
        """Load chunk `number`, in the parts that it was written in; it is checked at once.

        Raises:
            NLAError: It is missing, damaged, or not a chunk of this output.
        """
        path = self._paths().get(number)
        if path is None:
            self.check([*self._paths(), number])
        path = cast("Path", path)
        try:
            content = path.read_bytes()
            if path.name != f"{number:06d}-{self._digest(number, content)}.parquet":
                raise ValueError("its content is not what its name says")
            file = pq.ParquetFile(pa.BufferReader(content))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise NLAError(
                f"{path} cannot be used: {error}. Delete it and rerun with the same arguments; "
                "only chunks that are missing are made again."
            ) from error
        return map(file.read_row_group, range(file.num_row_groups))

    def discard(self, numbers: Iterable[int]) -> None:
        """Delete chunks."""
        found = self._paths()
        for number in set(numbers) & set(found):
            found[number].unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder, once the output is complete; files of somebody else stay.

        The manifest goes last: without it, a folder that a kill left behind would not be known as
        ours. What is left then is an empty folder.
        """
        manifest = self.folder / "manifest.json"
        if manifest.is_file():
            for path in self.folder.iterdir():
                if _is_ours(path) and path != manifest:
                    path.unlink(missing_ok=True)
            manifest.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _paths(self) -> dict[int, Path]:
        """Return the file of each chunk.

        Raises:
            NLAError: A chunk has two.
        """
        found: dict[int, Path] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            match = _CHUNK.fullmatch(path.name)
            if match and int(match[1]) in found:
                raise NLAError(
                    f"{self.folder} has two files of chunk {int(match[1])}: "
                    f"{found[int(match[1])].name} and {path.name}. Delete both and rerun with the "
                    "same arguments."
                )
            if match:
                found[int(match[1])] = path
        return found

    def _digest(self, number: int, content: bytes | memoryview) -> str:
        """Return a hash of a chunk: of its content, its number and the manifest."""
        key, salt = self._key.encode(), number.to_bytes(16, "big")
        return hashlib.blake2b(content, digest_size=12, key=key, salt=salt).hexdigest()

    def _refuse_other_files(self) -> None:
        """Refuse a folder of that name that is not a store, and files in it that are not ours."""
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise NLAError(
                f"{self.folder} exists and is not a folder, where the finished chunks of "
                f"{self._output} would go. Move it away, or choose another output."
            )
        found = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        if found and "manifest.json" not in found:
            others = [name for name in found if name != "lock" and not _LEFT.fullmatch(name)]
        else:
            others = [name for name in found if not _is_ours(self.folder / name)]
        if others:
            raise NLAError(
                f"{self.folder} holds files that are not chunks of {self._output}: "
                f"{', '.join(sorted(others)[:5])}. Move them away, or choose another output."
            )


def _is_ours(path: Path) -> bool:
    name = path.name
    known = name in ("manifest.json", "lock") or _CHUNK.fullmatch(name) or _LEFT.fullmatch(name)
    return bool(known) and not path.is_dir()


def _key(manifest: dict[str, Any]) -> str:
    """Return a hash of a manifest as it was at the first chunk; `label` may accept a later one."""
    labels = manifest.get("labels")
    if isinstance(labels, dict) and labels.get("earlier"):
        manifest = {**manifest, "labels": labels["earlier"][0]}
    plain = json.dumps(manifest, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()
