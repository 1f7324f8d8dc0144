"""The finished file: its chunks in order, one row group each, and the sidecar beside it.

Nothing of it depends on when or how often a run was interrupted, or on how the chunks were shared
among machines: no times, one fixed setting of the writer. Its metadata carry the manifest and how
many rows each chunk gave, from which `merge` puts the chunks of several shards back in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ..checkpoint.sidecar import DATASET_SUFFIX
from ..errors import NLAError
from .chunk_store import atomic
from .manifest import differences, parse_shard

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint

KEY = b"nnsight_nla.bulk"


def assemble(
    output: Path,
    schema: pa.Schema,
    tables: Iterable[pa.Table],
    manifest: dict[str, Any],
    sidecar: dict[str, Any],
    *,
    errors: int = 0,
) -> tuple[int, int]:
    """Write the finished file and its sidecar.

    Args:
        output: The file; it appears when it is whole.
        schema: Of every table.
        tables: The chunks, in order; some may be empty.
        manifest: What the rows depend on.
        sidecar: In the projects' own schema.
        errors: How many rows went elsewhere because of an error.

    Returns:
        How many rows there are, and how many of them have an error.
    """
    schema = pa.schema([_bare(column) for column in schema])
    text = yaml.safe_dump(sidecar, sort_keys=False, allow_unicode=True)
    with atomic(output.with_name(output.name + DATASET_SUFFIX)) as file:
        file.write(text.encode())
    counts: list[int] = []
    with atomic(output) as file:
        writer = pq.ParquetWriter(file, schema, compression="zstd", compression_level=3)
        with writer:
            for table in tables:
                counts.append(len(table))
                if "error" in schema.names:
                    errors += len(table) - table["error"].null_count
                if len(table):
                    writer.write_table(
                        table.select(schema.names).cast(schema).combine_chunks(),
                        row_group_size=len(table),
                    )
            note = {"manifest": manifest, "rows": counts, "errors": errors}
            writer.add_key_value_metadata({KEY: json.dumps(note, ensure_ascii=False).encode()})
    return sum(counts), errors


def dataset_sidecar(checkpoint: Checkpoint, manifest: dict[str, Any]) -> dict[str, Any]:
    """What stands beside a data set: the checkpoint in the projects' schema, and the manifest."""
    sidecar = {**checkpoint.to_sidecar("av"), "kind": "nla_dataset", "bulk": manifest}
    del sidecar["role"]
    return sidecar


def note_of(path: Path) -> dict[str, Any]:
    """The manifest of a finished file, the rows of each of its chunks, and its errors.

    Raises:
        NLAError: The file was not made here.
    """
    try:
        held = pq.ParquetFile(path).metadata.metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        raise NLAError(f"{path} cannot be read as Parquet: {error}") from error
    if KEY not in held:
        raise NLAError(
            f"{path} was not made by nnsight-nla (its metadata have no {KEY.decode()}). Move it "
            "away, or choose another output."
        )
    return json.loads(held[KEY])


def merge(inputs: Sequence[str | Path], output: str | Path) -> tuple[int, int]:
    """Put the outputs of all shards of one input together, as an unsharded run would have.

    Args:
        inputs: The shards' files, in any order.
        output: The file; what was there is replaced.

    Returns:
        How many rows there are, and how many of them have an error.

    Raises:
        NLAError: A shard is missing, doubled, or was made with other settings.
    """
    shards: dict[int, tuple[Path, dict[str, Any]]] = {}
    first: dict[str, Any] = {}
    for path in map(Path, inputs):
        note = note_of(path)
        manifest = note["manifest"]
        part, parts = parse_shard(manifest["shard"])
        whole = {**manifest, "shard": None, "parts": parts}
        if first and (found := differences(first, whole)):
            listed = "\n".join(f"  {line}" for line in found)
            raise NLAError(f"{path} and {inputs[0]} are not shards of one run:\n{listed}")
        if part in shards:
            raise NLAError(f"{path} and {shards[part][0]} are both shard {part}/{parts}.")
        first = whole
        shards[part] = path, note
    if not shards:
        raise NLAError("There is nothing to merge: name the shards' files.")
    missing = sorted(set(range(1, first["parts"] + 1)) - set(shards))
    if missing:
        listed = ", ".join(f"{part}/{first['parts']}" for part in missing)
        raise NLAError(f"Shard {listed} is missing: merge needs all of them.")
    path, note = shards[1]
    sidecar_path = path.with_name(path.name + DATASET_SUFFIX)
    if not sidecar_path.is_file():
        raise NLAError(f"{path} has no sidecar {sidecar_path.name} beside it. Copy it there too.")
    sidecar = yaml.safe_load(sidecar_path.read_text("utf-8"))
    sidecar["bulk"]["shard"] = None
    manifest = {**note["manifest"], "shard": None}
    schema = pq.ParquetFile(path).schema_arrow
    notes = [note for _, note in shards.values()]
    apart = 0 if "error" in schema.names else sum(note["errors"] for note in notes)
    return assemble(
        Path(output), schema, _in_turn([shards[part] for part in sorted(shards)]), manifest,
        sidecar, errors=apart,
    )  # fmt: skip


def _in_turn(shards: list[tuple[Path, dict[str, Any]]]) -> Iterable[pa.Table]:
    """The chunks of all shards in the input's order: one of each in turn."""
    files = [pq.ParquetFile(path) for path, _ in shards]
    rows = [note["rows"] for _, note in shards]
    groups = [list(accumulate(count > 0 for count in counts)) for counts in rows]
    for number in range(sum(map(len, rows))):
        shard, place = number % len(shards), number // len(shards)
        if rows[shard][place]:
            yield files[shard].read_row_group(groups[shard][place] - 1)
        else:
            yield files[shard].schema_arrow.empty_table()


def _bare(column: pa.Field) -> pa.Field:
    """A column as Parquet itself would name and note it: the same before and after it is read."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        kind = pa.list_(_bare(kind.value_field).with_name("element"), kind.list_size)
    elif pa.types.is_list(kind):
        kind = pa.list_(_bare(kind.value_field).with_name("element"))
    elif pa.types.is_struct(kind):
        kind = pa.struct([_bare(kind.field(place)) for place in range(kind.num_fields)])
    return pa.field(column.name, kind, column.nullable)
