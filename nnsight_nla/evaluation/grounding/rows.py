"""Read vectors together with the texts they were read in.

`nnsight-nla extract` writes such files: a vector, the text up to its token, its document and its
position; with ``--next-tokens`` also the target's likeliest next tokens, and after `label` also an
explanation. The rest of a document's text comes from its other rows::

    source = read_rows("rows.parquet")
    source.rows[0].text, source.rows[0].rest, source.vectors
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...errors import NLAError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@dataclass(frozen=True)
class GroundedRow:
    """The text of one vector."""

    document: str
    """The name of the document; a row without one counts as a document of its own."""
    text: str
    """The document up to the vector's token, that token included."""
    rest: str = ""
    """The document after the token, as far as it is known."""
    position: int | None = None
    """The position of the token, counted from 0."""
    next_tokens: tuple[str, ...] = ()
    """The target's likeliest next tokens there, the likeliest first; empty if unknown."""
    probabilities: tuple[float, ...] = ()
    """Their probabilities; empty if unknown."""
    label: str | None = None
    """What the explanation should be, if it is known."""


@dataclass(frozen=True)
class GroundedRows:
    """Vectors with their texts."""

    rows: tuple[GroundedRow, ...]
    """The texts, one for each vector."""
    vectors: Float[Tensor, "rows d_model"]
    """The vectors, raw, float32 on the CPU."""
    name: str = "these rows"
    """The name of their source, for tables."""
    by_document: dict[str, list[int]] = field(init=False, repr=False, compare=False)
    """The numbers of each document's rows, by position."""

    def __post_init__(self) -> None:
        """Check that there is a text for each vector.

        Raises:
            NLAError: There are more vectors or more texts.
        """
        if len(self.rows) != len(self.vectors):
            raise NLAError(
                f"Got {len(self.rows)} texts for {len(self.vectors)} vectors; pass one for each."
            )
        found: dict[str, list[int]] = {}
        for number, row in enumerate(self.rows):
            found.setdefault(row.document, []).append(number)
        for numbers in found.values():
            numbers.sort(key=lambda number: len(self.rows[number].text))
        object.__setattr__(self, "by_document", found)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, numbers: Sequence[int]) -> GroundedRows:
        """Return some of the rows."""
        chosen = torch.tensor(list(numbers), dtype=torch.long, device="cpu")
        return GroundedRows(tuple(self.rows[n] for n in numbers), self.vectors[chosen], self.name)


def from_records(
    records: Iterable[dict[str, Any]],
    name: str = "these rows",
    documents: dict[str, str] | None = None,
) -> GroundedRows:
    """Put rows together from records with the columns that `nnsight-nla extract` writes.

    Args:
        records: ``activation_vector``, ``detokenized_text_truncated`` and ``doc_id``; optional
            ``position``, ``next_tokens``, ``next_probabilities`` and ``api_explanation``.
        name: Where they come from.
        documents: The text of each document; by default the longest text among the records.

    Raises:
        NLAError: A record has no vector or no text, or the vectors have several widths.
    """
    kept = list(records)
    for number, record in enumerate(kept):
        for column in (VECTOR, TEXT):
            if record.get(column) is None:
                has = ", ".join(sorted(k for k, value in record.items() if value is not None))
                raise NLAError(
                    f"Row {number} of {name} has no {column!r}, so its explanation cannot be "
                    f"compared with a text. `nnsight-nla extract` writes both; this row has {has}."
                )
    names = [document_of(record, number) for number, record in enumerate(kept)]
    if documents is None:
        documents = {}
        for document, record in zip(names, kept, strict=True):
            _lengthen(documents, document, record[TEXT])
    rows = [
        GroundedRow(
            document=document,
            text=record[TEXT],
            rest=_rest(record[TEXT], documents.get(document, "")),
            position=record.get("position"),
            next_tokens=tuple(record.get("next_tokens") or ()),
            probabilities=tuple(record.get("next_probabilities") or ()),
            label=record.get(LABEL),
        )
        for document, record in zip(names, kept, strict=True)
    ]
    return GroundedRows(tuple(rows), _stacked([record[VECTOR] for record in kept], name), name)


def read_rows(file: str | Path, numbers: Sequence[int] | None = None) -> GroundedRows:
    """Read rows of a Parquet file, one batch at a time: it may be larger than the memory.

    Args:
        file: A file that `nnsight-nla extract` wrote.
        numbers: Which rows, counted from 0, in the order to return them; all unless given. The rest
            of a document is known from all rows.

    Raises:
        NLAError: The file cannot be read, has no texts, or has no row of such a number.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        reader = pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as error:
        first = str(error).splitlines()[0]
        raise NLAError(f"{file} cannot be read as Parquet: {first}") from error
    with reader as opened:
        schema, count = opened.schema_arrow.names, opened.metadata.num_rows
        if TEXT not in schema or VECTOR not in schema:
            raise NLAError(
                f"{file} has no column {TEXT!r} with the text up to each vector's token, so "
                "explanations cannot be compared with it. `nnsight-nla extract` writes it; the "
                f"file has {', '.join(schema)}."
            )
        wanted = list(range(count)) if numbers is None else list(numbers)
        unknown = next((number for number in wanted if not 0 <= number < count), None)
        if unknown is not None:
            raise NLAError(f"{file} has {count:,} rows, counted from 0, and no row {unknown}.")
        found = dict(_records(opened, set(wanted)))
        names = {record[DOCUMENT] for record in found.values()}
        documents = _documents(opened, names)
    return from_records((found[number] for number in wanted), Path(file).name, documents)


def has_texts(file: str | Path) -> bool:
    """Return whether a Parquet file has the texts that its vectors were read in."""
    import pyarrow.parquet as pq

    return TEXT in pq.read_schema(file).names


VECTOR, TEXT, DOCUMENT, LABEL = (
    "activation_vector", "detokenized_text_truncated", "doc_id", "api_explanation",
)  # fmt: skip
_COLUMNS = (VECTOR, TEXT, DOCUMENT, LABEL, "position", "next_tokens", "next_probabilities")
_BATCH = 1024


def document_of(record: dict[str, Any], number: int) -> str:
    """Return the name of a row's document; a row without one is a document of its own."""
    name = record.get(DOCUMENT)
    return f"row {number}, without {DOCUMENT}" if name is None else str(name)


def _records(file: Any, wanted: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield these rows with their numbers, reading only the row groups that have them."""
    import pyarrow as pa

    columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
    start = 0
    for group in range(file.metadata.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        if not wanted.isdisjoint(range(start, end)):
            for batch in file.iter_batches(_BATCH, row_groups=[group], columns=columns):
                places = [i for i in range(batch.num_rows) if start + i in wanted]
                chosen = batch.take(pa.array(places, pa.int64()))  # An empty list has no type.
                vectors = chosen.column(VECTOR)
                vectors = getattr(vectors, "storage", vectors)  # An extension's, such as a tensor.
                records = chosen.drop_columns([VECTOR]).to_pylist()
                for place, record, vector in zip(places, records, vectors, strict=True):
                    record[DOCUMENT] = document_of(record, start + place)
                    # As an array: a Python number per entry would take minutes.
                    values = getattr(vector, "values", None)
                    record[VECTOR] = (
                        None if values is None else values.to_numpy(zero_copy_only=False)
                    )
                    yield start + place, record
                start += batch.num_rows
        start = end


def _documents(file: Any, names: set[str]) -> dict[str, str]:
    """Return what is known of these documents: the longest text of their rows."""
    found: dict[str, str] = {}
    if DOCUMENT not in file.schema_arrow.names:
        return found
    for group in range(file.metadata.num_row_groups):
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[DOCUMENT]):
            if names.intersection(map(str, batch.column(DOCUMENT).to_pylist())):
                break
        else:
            continue
        for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[DOCUMENT, TEXT]):
            documents, texts = batch.column(DOCUMENT).to_pylist(), batch.column(TEXT)
            for document, text in zip(documents, texts, strict=True):
                if document is not None and str(document) in names:
                    _lengthen(found, str(document), text.as_py())
    return found


def _lengthen(documents: dict[str, str], document: str, text: str | None) -> None:
    """Keep the longest text of a document."""
    if text and len(text) > len(documents.get(document, "")):
        documents[document] = text


def _stacked(vectors: Sequence[Any], name: str) -> Tensor:
    try:
        rows = [np.array(each, dtype=np.float32) for each in vectors]
        stacked = np.stack(rows) if rows else np.zeros((0, 0), np.float32)
    except (TypeError, ValueError) as error:
        raise NLAError(
            f"The vectors of {name} are not numbers of one width ({error}). Leave the others out."
        ) from error
    return torch.from_numpy(stacked)


def _rest(text: str, document: str) -> str:
    return document[len(text) :] if document.startswith(text) else ""
