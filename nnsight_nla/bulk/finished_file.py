"""The finished file: one row group per chunk, in order, and a sidecar next to it.

The bytes do not depend on when or how often a call was interrupted, or on how the chunks were
shared between machines: no times are written, and the writer's settings are fixed. The metadata
contain the manifest and the number of rows of each chunk, so `merge` can restore the order of the
chunks of several shards.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..checkpoint.sidecar import DATASET_SUFFIX, read
from ..errors import NLAError, shown
from ..storage.atomic import atomic_file, remove_leftovers
from .chunk_store import ADVICE, ChunkStore
from .manifest import check_same, differences, parse_shard
from .parquet import open_parquet

KEY = b"nnsight_nla.bulk"
FORMER = {"score": "reconstruction_cosine"}
"""What columns of a run were called until 0.1, as in the chunks of one that is resumed."""


def write_finished(
    output: Path,
    schema: pa.Schema,
    chunks: Iterable[Iterable[pa.Table]],
    manifest: dict[str, Any],
    sidecar: dict[str, Any],
    *,
    errors: int = 0,
) -> tuple[int, int]:
    """Write the finished file and its sidecar.

    Args:
        output: The file; it appears when it is complete.
        schema: The columns to write; the chunks may have more.
        chunks: The chunks, in order, each in parts of which one at a time is in memory.
        manifest: What the rows depend on.
        sidecar: The sidecar in the projects' schema, without the manifest.
        errors: How many rows went to another file because of an error.

    Returns:
        The number of rows, and how many rows have an error.
    """
    schema = pa.schema([_canonical(column) for column in schema])
    sidecar_path = output.with_name(output.name + DATASET_SUFFIX)
    for path in (sidecar_path, output):
        remove_leftovers(path)
    text = yaml.safe_dump({**sidecar, "bulk": manifest}, sort_keys=False, allow_unicode=True)
    with atomic_file(sidecar_path, advice=ADVICE) as file:
        file.write(text.encode())
    counts: list[int] = []
    with atomic_file(output, advice=ADVICE) as file:
        writer = pq.ParquetWriter(
            file, schema, compression="zstd", compression_level=3, write_page_checksum=True
        )
        with writer:
            for parts in chunks:
                counts.append(0)
                for made in filter(len, parts):
                    table = made.rename_columns(_today(made.column_names, schema.names))
                    counts[-1] += len(table)
                    if "error" in schema.names:
                        errors += len(table) - table["error"].null_count
                    writer.write_table(
                        table.select(schema.names).cast(schema).combine_chunks(),
                        row_group_size=len(table),
                    )
            note = {"manifest": manifest, "rows": counts, "errors": errors}
            # What the vectors are, where the sidecar is lost.
            note |= {name: sidecar[name] for name in ("d_model", "extraction") if name in sidecar}
            writer.add_key_value_metadata({KEY: json.dumps(note, ensure_ascii=False).encode()})
    return sum(counts), errors


def refuse_other_file(path: Path) -> None:
    """Refuse an output in whose place there is a file that this package did not write.

    An output of this package is left to the caller, who can compare its manifest.

    Raises:
        NLAError: The file or its sidecar is somebody else's, or a link that leads nowhere.
    """
    sidecar = path.with_name(path.name + DATASET_SUFFIX)
    for each in (path, sidecar):
        if each.is_symlink() and not each.exists():
            raise NLAError(
                f"{each} is a link to {each.readlink()}, which does not exist. Remove the link, "
                "or choose another output."
            )
    if path.exists():
        read_note(path)
    elif sidecar.exists() and not _made_here(sidecar):
        raise NLAError(
            f"{sidecar} exists and was not made by nnsight-nla run, extract, label or merge; it "
            f"would be replaced by the sidecar of {path.name}. Move it away, or choose another "
            "output."
        )


def _made_here(sidecar: Path) -> bool:
    try:
        tree = read(sidecar)
    except (NLAError, OSError):
        return False
    bulk = cast("dict[str, Any]", tree).get("bulk") if isinstance(tree, dict) else None
    return isinstance(bulk, dict) and "shard" in bulk


def read_sidecar(path: Path) -> dict[str, Any]:
    """Load the sidecar next to a data set.

    Raises:
        NLAError: There is none, or it is malformed.
    """
    sidecar = path.with_name(path.name + DATASET_SUFFIX)
    if not sidecar.is_file():
        raise NLAError(
            f"{path} has no sidecar {sidecar.name} next to it, which names the model and the layer "
            "of its rows. Copy it there too, or use the one that the data set was published with."
        )
    tree = read(sidecar)
    if not isinstance(tree, dict):
        raise NLAError(f"{sidecar}: expected a mapping, got {shown(tree)}.")
    return tree


def sibling(output: Path, name: str) -> Path:
    """Return a further output's path, such as ``rows.train.parquet`` for ``rows.parquet``."""
    return output.with_name(f"{output.stem}.{name}{output.suffix}")


def read_note(path: Path) -> dict[str, Any]:
    """Return the manifest of a finished file, the rows of each of its chunks, and its errors.

    Raises:
        NLAError: The file was not made here.
    """
    try:
        metadata = open_parquet(path).metadata.metadata or {}
    except NLAError as error:
        said = str(error).rstrip(".")
        raise NLAError(f"{said}. Move it away, or choose another output.") from error
    if KEY not in metadata:
        raise NLAError(
            f"{path} was not made by nnsight-nla (its metadata have no {KEY.decode()}). Move it "
            "away, or choose another output."
        )
    try:
        return json.loads(metadata[KEY])
    except ValueError as error:
        raise NLAError(f"{path} is damaged: its metadata are no JSON ({error}).") from error


def earlier_manifest(output: Path) -> dict[str, Any]:
    """Return the manifest of a finished or unfinished output; empty if there is none.

    Raises:
        NLAError: There is a file of that name that was not made here.
    """
    if output.exists():
        return read_note(output)["manifest"]
    return ChunkStore(output).manifest or {}


def merge(inputs: Sequence[str | Path], output: str | Path) -> tuple[int, int]:
    """Merge the outputs of all shards of one input into the file that an unsharded run writes.

    Args:
        inputs: The shards' files, in any order.
        output: The file to write; one that the same merge wrote is replaced.

    Returns:
        The number of rows, and how many rows have an error.

    Raises:
        NLAError: A shard is missing, given twice, damaged, or was made with other settings; or
            `output` exists and is something else.
    """
    output = Path(output).expanduser()
    refuse_other_file(output)
    shards: dict[int, tuple[Path, dict[str, Any]]] = {}
    first: dict[str, Any] = {}
    for path in map(Path, inputs):
        note = read_note(path)
        number, total = parse_shard(note["manifest"]["shard"])
        unsharded = {**note["manifest"], "shard": None, "parts": total}
        if first and (found := differences(first, unsharded)):
            listed = "\n".join(f"  {line}" for line in found)
            raise NLAError(f"{path} and {inputs[0]} are not shards of one run:\n{listed}")
        if number in shards:
            raise NLAError(f"{path} and {shards[number][0]} are both shard {number}/{total}.")
        first = unsharded
        shards[number] = path, note
    if not shards:
        raise NLAError("There is nothing to merge: pass the shards' files.")
    total = first.pop("parts")
    missing = [f"{number}/{total}" for number in range(1, total + 1) if number not in shards]
    if missing:
        raise NLAError(f"Shard {', '.join(missing)} is missing: merge needs all of them.")
    if output.exists():
        check_same(read_note(output)["manifest"], first, output)
    _check_shards(shards, first)
    schema = open_parquet(shards[1][0]).schema_arrow
    if first["made_by"] == "nnsight-nla run":
        names = _today(schema.names, list(FORMER.values()))
        renamed = zip(schema, names, strict=True)
        schema = pa.schema([column.with_name(name) for column, name in renamed])
    errors = 0 if "error" in schema.names else sum(note["errors"] for _, note in shards.values())
    chunks = _interleaved([shards[number] for number in sorted(shards)])
    sidecar = read_sidecar(shards[1][0])
    return write_finished(output, schema, chunks, first, sidecar, errors=errors)


def _check_shards(shards: dict[int, tuple[Path, dict[str, Any]]], manifest: dict[str, Any]) -> None:
    """Check that every shard has the chunks and the rows that its note says.

    Raises:
        NLAError: One of them does not.
    """
    counts = [len(note["rows"]) for _, (_, note) in sorted(shards.items())]
    rows, size = manifest.get("input", {}).get("rows"), manifest.get("chunk")
    total = sum(counts) if rows is None or not size else -(-rows // size)
    for number, (path, note) in sorted(shards.items()):
        expected = len(range(number - 1, total, len(shards)))
        metadata = open_parquet(path).metadata
        groups = [metadata.row_group(place).num_rows for place in range(metadata.num_row_groups)]
        ends = set(accumulate(groups, initial=0))
        whole = set(accumulate(note["rows"])) <= ends and sum(note["rows"]) == sum(groups)
        if len(note["rows"]) != expected or not whole:
            raise NLAError(
                f"{path} is incomplete: it has {len(note['rows'])} chunks and {sum(groups):,} "
                f"rows, expected {expected} chunks and {sum(note['rows']):,} rows. Make this "
                "shard again."
            )


def _interleaved(shards: list[tuple[Path, dict[str, Any]]]) -> Iterable[Iterable[pa.Table]]:
    """Yield the chunks of all shards in the order of the input: one of each in turn."""
    groups = [_row_groups(path) for path, _ in shards]
    rows = [note["rows"] for _, note in shards]
    for number in range(sum(map(len, rows))):
        shard, place = number % len(shards), number // len(shards)
        yield _of_rows(groups[shard], rows[shard][place])


def _row_groups(path: Path) -> Iterator[pa.Table]:
    file = pq.ParquetFile(path, page_checksum_verification=True)
    for place in range(file.num_row_groups):
        try:
            yield file.read_row_group(place)
        except (pa.ArrowException, OSError) as error:
            raise NLAError(f"{path} is damaged: {error}. Make this shard again.") from error


def _of_rows(groups: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield as many of the next row groups as have so many rows."""
    while rows > 0:
        table = next(groups)
        rows -= len(table)
        yield table


def _today(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """Return the names of columns, with today's for a former one that another file needs."""
    return [
        FORMER[name] if FORMER.get(name) in wanted and FORMER[name] not in names else name
        for name in names
    ]


def _canonical(column: pa.Field) -> pa.Field:
    """Return a column with the names that Parquet gives: the same before and after it is read."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(_canonical(kind.value_field).with_name("element"), kind.list_size)
    elif pa.types.is_list(kind):
        kind = pa.list_(_canonical(kind.value_field).with_name("element"))
    elif pa.types.is_struct(kind):
        kind = pa.struct([_canonical(kind.field(place)) for place in range(kind.num_fields)])
    return pa.field(column.name, kind, column.nullable)
