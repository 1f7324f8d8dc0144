"""Open texts or vectors as rows in a fixed order, a chunk at a time.

A `Source` can start at any row and never holds more than one chunk in memory. Rows are numbered
across the whole input, so all machines that share an input use the same numbers::

    source = open_source("corpus.jsonl")
    for number, items in source.chunks(32, wanted=lambda number: number % 2 == 0):
        ...                                  # rows 0 to 31, 64 to 95, ...

A row that cannot be used (a line that is not JSON, a document that is not a string, a vector of
another shape) is an `Item` with an error in place of its value. An input that cannot be used at all
(a missing file or column) raises an error here.
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import _compat
from ..checkpoint.origin import Origin
from ..errors import NLAError, shown
from ..models.fingerprint import Unchanged, UnchangedFiles, fingerprint_file
from . import matrices, parquet
from .items import VECTOR, VECTORS, Columns, Item, Kind, Source, kind_of, row_origin

__all__ = ["VECTOR", "VECTORS", "Item", "Source", "open_source"]

_FILES = (".jsonl", ".ndjson", ".gz", ".parquet", ".npy", ".safetensors", ".csv", ".json", ".txt")


def open_source(
    name: str | Path,
    *,
    text: str | None = None,
    vector: str | None = None,
    doc_id: str | None = None,
    question: str | None = None,
    split: str | None = None,
    tensor: str | None = None,
) -> Source:
    """Open the rows of a file, a folder or a named data set.

    Args:
        name: JSON lines (also ``.gz``), Parquet or a Hugging Face data set (saved to disk, or by
            name: ``owner/name``, ``owner/name:configuration``) with a column of texts or of
            vectors; ``.safetensors`` or ``.npy`` of ``[rows, d_model]``.
        text: The column of the texts; default: ``text``, where there are no vectors.
        vector: The column of the vectors; default: ``activation_vector`` or, for an oracle,
            ``activation_vectors`` (those of the row's slots), where there is one.
        doc_id: The column of the rows' names; default: ``doc_id`` or ``id``.
        question: The column of the questions, for an oracle.
        split: The split of a Hugging Face data set; default: ``train``.
        tensor: The tensor of a ``.safetensors`` file that has several.

    Raises:
        NLAError: The input does not exist or has none of these forms.
    """
    if not isinstance(name, str | Path):
        raise NLAError(
            f"The input is {shown(name)}: expected the path of a file or a folder, or the name of "
            "a data set. For vectors in memory: nla.explain(vectors)."
        )
    path = Path(name).expanduser()
    kinds = path.suffixes[-2:]
    if text is not None and vector is not None:
        raise NLAError(
            f"text={shown(text)} and vector={shown(vector)}: an input is read as texts or as "
            "vectors. Pass "
            "one of them."
        )
    columns = Columns(text, vector, doc_id, question)
    if path.is_file():
        if ".jsonl" in kinds or ".ndjson" in kinds:
            return _json_lines(path, columns)
        if path.suffix == ".parquet":
            return parquet.open_rows(path, columns)
        if question is not None:
            raise NLAError(
                f"{path} has no columns, and question={shown(question)} names one. Put vectors "
                "and questions into a Parquet file, or ask one question about all rows: "
                "run(nla, source, output, question='What is the tone?')."
            )
        if path.suffix == ".npy":
            return matrices.npy(path)
        if path.suffix == ".safetensors":
            return matrices.safetensors(path, tensor)
        raise NLAError(
            f"{path}: expected .jsonl (also .jsonl.gz), .parquet, .safetensors, .npy, or a Hugging "
            "Face data set's folder or name."
        )
    named = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(:.+)?", str(name)) and path.suffix not in _FILES
    if path.is_dir() or named:
        return _hugging_face(str(name), columns, split)
    raise NLAError(
        f"{path.absolute()}: there is no such file or folder, and {str(name)!r} is not the name of "
        "a data set (owner/name)."
    )


def _json_lines(path: Path, columns: Columns) -> Source:
    compressed = path.suffix == ".gz"
    identity = fingerprint_file(path)

    def lines() -> Iterator[tuple[int, bytes]]:
        """Yield the lines that have something in them, with their numbers, from 1."""
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            left = identity["bytes"]
            for number, line in enumerate(file, start=1):
                if not compressed:  # Whatever was added since then is not read.
                    line, left = line[:left], left - len(line)
                if line.strip():
                    yield number, line
                if left <= 0:
                    return

    def raw(start: int) -> Iterator[tuple[int, bytes]]:
        return itertools.islice(lines(), start, None)

    def record_of(number: int, line: bytes) -> Any:
        try:
            return json.loads(line)
        except RecursionError:
            raise ValueError(f"line {number} is nested too deeply") from None
        except ValueError as error:
            raise ValueError(f"line {number} is not JSON: {error}") from error

    first = next(lines(), None)
    if first is None:
        raise NLAError(f"{path} is empty.")
    try:
        record = record_of(*first)
        kinds: dict[str, Kind] = {str(name): kind_of(value) for name, value in record.items()}
    except (ValueError, AttributeError):
        wanted = columns.text or columns.vector or "text"
        named = (wanted, columns.doc_id, columns.question)
        kinds = dict.fromkeys(filter(None, named), "any")
    kind, column = columns.choose(path, kinds)

    def item(row: int, stored: tuple[int, bytes]) -> Item:
        number, line = stored
        try:
            record = record_of(number, line)
        except ValueError as error:
            return Item(row, str(row), None, str(error))
        if not isinstance(record, dict):
            found = type(record).__name__
            return Item(row, str(row), None, f"line {number} is a JSON {found}, not an object")
        made = columns.item(kind, column, row, record)
        return replace(made, origin=row_origin(record, path.name)) if kind == "vectors" else made

    count = sum(1 for _ in lines())
    origin = Origin.next_to(path, column) if kind == "vectors" else Origin()
    check = Unchanged(path, identity, may_grow=not compressed)
    return Source(kind, columns.named(identity, column), count, raw, item, origin, check)


def _hugging_face(name: str, columns: Columns, split: str | None) -> Source:
    try:
        import datasets
    except ImportError as error:
        raise NLAError(
            f"{name}: Hugging Face data sets need the package datasets: pip install "
            "'nnsight-nla[datasets]'."
        ) from error
    folder = Path(name).expanduser()
    saved = folder.is_dir() and any(
        (folder / file).exists() for file in ("state.json", "dataset_dict.json")
    )
    repository, _, configuration = name.partition(":")
    try:
        if saved:
            held: Any = datasets.load_from_disk(str(folder))
            if isinstance(held, datasets.DatasetDict):
                held = held[split or "train"]
        else:
            held = datasets.load_dataset(
                str(folder) if folder.is_dir() else repository,
                configuration or None,
                split=split or "train",
                streaming=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise NLAError(
            f"The data set {name!r} (split {split or 'train'!r}) could not be opened: "
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
        ) from error
    first = held[0] if saved and len(held) else next(iter(held), None)
    if first is None:
        raise NLAError(f"The data set {name!r} is empty.")
    kind, column = columns.choose(name, {each: kind_of(value) for each, value in first.items()})

    def raw(start: int) -> Iterator[dict[str, Any]]:
        if saved:
            return (held[row] for row in range(start, len(held)))
        return iter(held.skip(start))

    def item(row: int, record: dict[str, Any]) -> Item:
        made = columns.item(kind, column, row, record)
        return (
            replace(made, origin=row_origin(record, identity["name"]))
            if kind == "vectors"
            else made
        )

    identity: dict[str, Any] = {
        "name": Path(name).name if folder.is_dir() else name,
        "split": split or "train",
    }
    # A folder is identified by its content, a repository by its revision.
    identity["fingerprint"] = _compat.data_set_fingerprint(held) if saved else _revision(held)
    files = [Path(each["filename"]) for each in held.cache_files] if saved else _files(folder)
    check = UnchangedFiles(files)
    if folder.is_dir():
        identity |= check.identity
    vectors = folder.is_dir() and kind == "vectors"
    origin = Origin.next_to(folder, column) if vectors else Origin()
    count = len(held) if saved else None
    return Source(kind, columns.named(identity, column), count, raw, item, origin, check)


def _files(folder: Path) -> list[Path]:
    """Return the files in a folder that are not hidden; none if there is no such folder."""
    return [each for each in folder.rglob("*") if each.is_file() and each.name[0] != "."]


def _revision(held: Any) -> str:
    """Return the addresses of a streamed data set's files, which contain their revisions."""
    checksums = held.info.download_checksums or {}
    return ", ".join(sorted(map(str, checksums))) or str(held.info.version or "")
