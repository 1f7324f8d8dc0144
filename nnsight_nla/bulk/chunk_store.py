"""Crash-safe store of finished chunks, in a folder next to the output.

Each chunk is complete or absent, whenever the process is killed. The folder also holds the manifest
of the output, and a lock that the operating system releases when its holder dies::

    out.parquet.parts/    manifest.json  lock  000000.parquet  000001.parquet  ...
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Generator, Iterable
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
_CHUNK = re.compile(r"(\d{6,})\.parquet")
_LEFT = re.compile(r"\.(\d{6,}\.parquet|manifest\.json)\.[0-9a-f]{12}\.tmp")
_NOTE = b"nnsight_nla.chunk"
ADVICE = "What is finished is kept: rerun with the same arguments, or choose another output."
"""What the user can do after a failed write."""


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
        found = (_CHUNK.fullmatch(path.name) for path in self.folder.glob("*.parquet"))
        return sorted(int(match[1]) for match in found if match)

    def write(self, number: int, table: pa.Table) -> None:
        """Store chunk `number`, with what identifies it."""
        note = {_NOTE: json.dumps([self._key, number, len(table)]).encode()}
        table = table.replace_schema_metadata(note)
        with atomic_file(self._path(number), advice=ADVICE) as file:
            # Vectors do not compress, and a chunk is read once.
            pq.write_table(table, file, compression="lz4", write_page_checksum=True)

    def check(self, expected: Collection[int]) -> None:
        """Check that these chunks are there, and no others.

        Raises:
            NLAError: One is missing, damaged, or not a chunk of this output.
        """
        found = self.numbers()
        missing, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
        if missing or more:
            listed = [f"{self._path(number)} is missing" for number in missing[:5]]
            listed += [f"{self._path(number)} is not one of its chunks" for number in more[:5]]
            raise NLAError(
                f"Something else changed {self.folder} while it was written: {'; '.join(listed)}. "
                f"{'Move what does not belong there away, then rerun' if more else 'Rerun'} with "
                "the same arguments; only chunks that are missing are made again."
            )
        for number in found:
            self._open(number)

    def read(self, number: int) -> pa.Table:
        """Load chunk `number`.

        Raises:
            NLAError: It is missing, damaged, or not a chunk of this output.
        """
        file = self._open(number)
        try:
            table = file.read().replace_schema_metadata()
        except (pa.ArrowException, OSError) as error:
            raise self._damaged(number, str(error)) from error
        if len(table) != file.metadata.num_rows:
            raise self._damaged(number, f"it has {len(table)} rows")
        return table

    def discard(self, numbers: Iterable[int]) -> None:
        """Delete chunks."""
        for number in numbers:
            self._path(number).unlink(missing_ok=True)

    def remove(self) -> None:
        """Delete the folder, once the output is complete; files of somebody else stay."""
        if not (self.folder / "manifest.json").is_file():
            return
        for path in self.folder.iterdir():
            if _is_ours(path):
                path.unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _open(self, number: int) -> pq.ParquetFile:
        path = self._path(number)
        try:
            file = pq.ParquetFile(path, page_checksum_verification=True)
            note = json.loads((file.schema_arrow.metadata or {}).get(_NOTE, b"null"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._damaged(number, str(error)) from error
        if note != [self._key, number, file.metadata.num_rows]:
            raise self._damaged(number, f"it is not chunk {number} of this output")
        return file

    def _damaged(self, number: int, why: str) -> NLAError:
        return NLAError(
            f"{self._path(number)} cannot be used: {why}. Delete it and rerun with the same "
            "arguments; only chunks that are missing are made again."
        )

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

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06d}.parquet"


def _is_ours(path: Path) -> bool:
    name = path.name
    known = name in ("manifest.json", "lock") or _CHUNK.fullmatch(name) or _LEFT.fullmatch(name)
    return bool(known) and not path.is_dir()


def _key(manifest: dict[str, Any]) -> str:
    """Return a short hash of a manifest, which every chunk carries."""
    plain = json.dumps(manifest, sort_keys=True, ensure_ascii=True)
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()
