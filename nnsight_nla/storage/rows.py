"""Parquet files of one record: rows, and a note in the schema's metadata that says what they are.

The note is JSON under the format's name, with its version; whoever reads the file gets the rows of
that format, of this version or an earlier one, or an error that says what the file is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..errors import NLAError, shown
from .atomic import atomic_file

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Format:
    """One kind of file."""

    name: str
    """The key of its note."""
    version: int
    """The version that is written; it and all earlier ones are read."""
    what: str
    """What a file holds, with its article: ``a reading``."""
    how: str
    """The call that writes one."""

    def table(self, path: Path, rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
        """Convert rows to a table.

        Raises:
            NLAError: A text is not valid Unicode.
        """
        import pyarrow as pa

        try:
            return pa.Table.from_pylist(rows, schema=schema)
        except UnicodeEncodeError as error:
            raise NLAError(
                f"{path} cannot hold the text {shown(error.object)}: it has a lone surrogate. "
                "Repair it: text.encode('utf-8', 'replace').decode()."
            ) from error

    def write(self, path: Path, table: pa.Table, note: Mapping[str, Any]) -> None:
        """Write a table with its note; the file is complete or not there.

        Raises:
            NLAError: The disk is full, or the file cannot be written.
        """
        import pyarrow.parquet as pq

        text = json.dumps({"format": self.name, "version": self.version, **note})
        with atomic_file(path) as file:
            pq.write_table(table.replace_schema_metadata({self.name: text}), file)

    def read(self, path: Path) -> tuple[pa.Table, dict[str, Any]]:
        """Return the table and its note.

        Raises:
            NLAError: The file is missing, holds something else, or is of a later version.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not path.is_file():
            missing = "is a folder" if path.is_dir() else "does not exist"
            raise NLAError(f"{path} {missing}; expected the file of {self.what}.")
        try:
            table = pq.ParquetFile(path).read()
        except pa.ArrowInvalid as error:
            raise NLAError(f"{path} is not a parquet file: {error}") from error
        except (pa.ArrowException, OSError) as error:
            raise NLAError(f"{path} cannot be read as parquet: {error}") from error
        try:
            found = json.loads((table.schema.metadata or {}).get(self.name.encode(), b"{}"))
        except (ValueError, RecursionError):
            found = {}
        note = cast("dict[str, Any]", found if isinstance(found, dict) else {})
        if note.pop("format", None) != self.name:
            raise NLAError(
                f"{path} does not hold {self.what} (columns: {', '.join(table.column_names)}). "
                f"Write one with {self.how}."
            )
        version = note.pop("version", None)
        if isinstance(version, bool) or version not in range(1, self.version + 1):
            raise NLAError(
                f"{path} is {self.what} of version {version}, this package reads version "
                f"{self.version}. Update it: pip install -U nnsight-nla."
            )
        return table, note

    def select(self, path: Path, table: pa.Table, schema: pa.Schema) -> pa.Table:
        """Return the columns of a schema, in its types.

        Raises:
            NLAError: The table lacks one, or holds other values.
        """
        try:
            return table.select(schema.names).cast(schema)
        except (LookupError, TypeError, ValueError) as error:
            raise self.damaged(path, str(error)) from error

    def damaged(self, path: Path, why: str) -> NLAError:
        """Return the error for a file that says what it is and is not."""
        return NLAError(f"{path} is not as {self.what} is written: {why[:100]}")
