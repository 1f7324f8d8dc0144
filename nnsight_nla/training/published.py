"""Read training rows from a published Parquet file and its sidecar.

Columns: ``activation_vector``; the label as ``response`` (in its tags) or as ``api_explanation``;
``prompt`` where the rows have one; ``doc_id``, ``activation_layer`` and others as provenance. The
sidecar ``{file}.nla_meta.yaml``, in the same folder, names base model and layer.

A verbalizer with a marker for each of several vectors has rows with ``activation_vectors``, a list
of vectors, one for each marker. The rows of an oracle have ``activation_vectors`` too, one for each
slot; ``question`` and ``answer``; and ``layer`` where the vectors are of several layers::

    rows = Published("rows.parquet", part="train")
    for batch in rows.batches(d_model): ...
    for batch in Published("questions.parquet").questions(d_model): ...

Neighbouring tokens of one text have almost the same vector, so rows are split by *document*: a hash
of ``doc_id`` alone decides which are held out. A document that is held out at one share is held
out at every larger one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from ..bulk.parquet import parquet_origin
from ..checkpoint import dialects, sidecar
from ..checkpoint.checkpoint import AR_TEMPLATE, EXPLANATION_SLOT
from ..checkpoint.origin import Origin
from ..checkpoint.reply import wrap
from .question_rows import Question
from .rows import Batch, TrainingError, check_count, check_width

Part = Literal["all", "train", "held out"]
HELD_OUT = 0.05
"""The default share of documents that training does not see."""
VECTOR, DOCUMENT = "activation_vector", "doc_id"
VECTORS, QUESTION, ANSWER = "activation_vectors", "question", "answer"
_LABELS = ("response", "api_explanation")
_LAYERS = ("activation_layer", "layer")
_BATCH = 1024


class Published:
    """The rows of a Parquet file, or of one part of it, read one batch at a time."""

    def __init__(
        self,
        file: str | Path,
        *,
        part: Part = "all",
        held_out: float = HELD_OUT,
        limit: int | None = None,
        scratch: Path | None = None,
    ) -> None:
        """Read the sidecar and the column names; no rows yet.

        Args:
            file: The Parquet file.
            part: Which documents.
            held_out: The share of documents that are held out.
            limit: The largest number of rows to read. They are spread over the documents: one row
                of each before a second one of any, chosen by a hash; without documents, evenly
                over the file.
            scratch: The folder for the memory-mapped vectors: 4 bytes per entry.

        Raises:
            TrainingError: The file cannot be read or has no vectors, no labels, or no documents to
                split by.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file, self.held_out, self.limit = Path(file), held_out, limit
        self.part: Part = part
        self.scratch = scratch
        try:
            schema = pq.read_schema(self.file)
        except (OSError, pa.ArrowInvalid) as error:
            raise TrainingError(
                f"{file} cannot be read as Parquet: {str(error).splitlines()[0]}"
            ) from error
        self._columns = schema.names
        self._label = next((name for name in _LABELS if name in self._columns), None)
        listed = VECTORS in self._columns and VECTOR not in self._columns
        self.several = listed and self._label is not None and QUESTION not in self._columns
        """Whether each explanation is of several vectors."""
        self.asks = listed and not self.several
        """Whether these are the rows of an oracle."""
        missing = [name for name in (QUESTION, ANSWER) if name not in self._columns]
        if VECTOR not in self._columns and not self.several and (not self.asks or missing):
            lacking = ", ".join(map(repr, missing if self.asks else [VECTOR]))
            raise TrainingError(
                f"{file} has no column {lacking}; it has {', '.join(self._columns)}."
            )
        if listed and not _holds_lists(schema.field(VECTORS).type):
            raise TrainingError(
                f"{file}: column {VECTORS!r} holds {schema.field(VECTORS).type}, expected a list "
                "of vectors in each row, one for each slot."
            )
        if part != "all" and DOCUMENT not in self._columns:
            raise TrainingError(
                f"{file} has no column {DOCUMENT!r}, so no documents can be held out of it, and "
                "rows of one text would be on both sides. Hold out none: held_out=0."
            )
        self.meta = _sidecar(self.file)
        self._count: int | None = None
        self._chosen: set[int] | None = None
        self.unchanged: Callable[[], None] | None = None
        """Called when the file was read to its end; raises if it is not what it was."""

    def __len__(self) -> int:
        if self._count is None:
            self._count = sum(len(numbers) for _, numbers in self._tables([DOCUMENT]))
        return self._count

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.name

    @property
    def has_labels(self) -> bool:
        """Whether the file has an explanation for each row."""
        return self._label is not None or "prompt" in self._columns

    @property
    def origin(self) -> Origin:
        """What the file says about its vectors, in its sidecar, its metadata and its columns."""
        return parquet_origin(self.file)[0]

    def batches(self, d_model: int, slots: int = 1) -> Iterator[Batch]:
        """Read the rows, checking each vector's width and each row's layer.

        Args:
            d_model: The width of a vector.
            slots: The number of vectors of each explanation.

        Raises:
            TrainingError: A row has a vector of another width or layer than the sidecar's, or
                another number of them; or the file has no labels.
        """
        self._check_rows("several" if slots > 1 else "one")
        if not self.has_labels:
            raise TrainingError(
                f"{self.file} has no labels: a column {' or '.join(map(repr, _LABELS))} with an "
                f"explanation for each row. It has {', '.join(self._columns)}."
            )
        wanted = [VECTORS if self.several else VECTOR, DOCUMENT, "prompt", *_LABELS, *_LAYERS]
        for table, numbers in self._tables(wanted):
            names = [f"{self.file}, row {number}" for number in numbers]
            self._check_layer(table, names)
            if self.several:
                vectors, counts = _lists(table.column(VECTORS), names, d_model)
                for name, count in zip(names, counts, strict=True):
                    check_count(name, count, slots)
                vectors = vectors.reshape(-1, slots, d_model)
            else:
                vectors = _vectors(table.column(VECTOR), names, d_model)
            prompts, responses = self._texts(table)
            yield Batch(names, prompts, responses, vectors)

    def questions(self, d_model: int) -> Iterator[list[Question]]:
        """Read the rows of an oracle, checking each vector's width.

        Raises:
            TrainingError: A row has a vector of another width; or the rows are explanations.
        """
        self._check_rows("questions")
        for table, numbers in self._tables([VECTORS, DOCUMENT, QUESTION, ANSWER, *_LAYERS]):
            names = [f"{self.file}, row {number}" for number in numbers]
            flat, counts = _lists(table.column(VECTORS), names, d_model)
            vectors = flat.split(counts)
            texts = (table.column(name).to_pylist() for name in (QUESTION, ANSWER))
            column = _layer_column(table.schema.names)
            layers = [None] * len(names) if column is None else table.column(column).to_pylist()
            yield list(map(Question, names, *texts, vectors, layers))

    @property
    def layers(self) -> list[int]:
        """The blocks that the vectors of an oracle's rows are of, as far as the rows say so."""
        import pyarrow.parquet as pq

        column = _layer_column(self._columns)
        if column is None:
            return []
        table = pq.read_table(self.file, columns=[column])
        return sorted(table[column].unique().drop_null().to_pylist())

    def vectors(self, d_model: int) -> Iterator[torch.Tensor]:
        """Read the vectors alone, one batch at a time; the file needs no labels."""
        self._check_rows("one")
        for table, numbers in self._tables([VECTOR, DOCUMENT]):
            names = [f"{self.file}, row {number}" for number in numbers]
            yield _vectors(table.column(VECTOR), names, d_model)

    def numbers(self) -> list[int]:
        """Return the numbers of the rows in the file, counted from 0, in the order of `batches`."""
        return [number for _, numbers in self._tables([DOCUMENT]) for number in numbers]

    def documents(self) -> list[str]:
        """Return the document of each row, in the order of `batches`."""
        tables = self._tables([DOCUMENT])
        return [str(each) for table, _ in tables for each in table.column(DOCUMENT).to_pylist()]

    def records(self, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield the number of each row, and those of these columns that the file has."""
        for table, numbers in self._tables(columns):
            yield from zip(numbers, table.to_pylist(), strict=True)

    def _tables(self, wanted: Sequence[str]) -> Iterator[tuple[Any, list[int]]]:
        """Yield these columns of the rows of this part, and the numbers of the rows."""
        import pyarrow.parquet as pq

        columns = [name for name in dict.fromkeys(wanted) if name in self._columns]
        if self.limit is not None and self._chosen is None:
            self._chosen = self._spread(self.limit)
        start, left = 0, None if self._chosen is None else len(self._chosen)
        with pq.ParquetFile(self.file, memory_map=True) as file:
            for batch in file.iter_batches(_BATCH, columns=columns):
                numbers = list(range(batch.num_rows))
                if self._chosen is not None:
                    numbers = [i for i in numbers if start + i in self._chosen]
                elif self.part != "all":
                    documents = batch.column(DOCUMENT).to_pylist()
                    numbers = [i for i in numbers if self._has(documents[i])]
                if numbers:
                    yield batch.take(numbers), [start + number for number in numbers]
                start += batch.num_rows
                left = None if left is None else left - len(numbers)
                if left == 0:
                    break
        if self.unchanged is not None:
            self.unchanged()

    def _has(self, document: object) -> bool:
        """Return whether a document belongs to this part."""
        return self.part == "all" or is_held_out(document, self.held_out) == (
            self.part == "held out"
        )

    def _spread(self, limit: int) -> set[int]:
        """Choose rows of this part, spread over its documents."""
        import pyarrow.parquet as pq

        if DOCUMENT not in self._columns:
            count = pq.read_metadata(self.file).num_rows
            return {i * count // min(limit, count) for i in range(min(limit, count))}
        documents: list[object] = pq.read_table(self.file, columns=[DOCUMENT])[DOCUMENT].to_pylist()
        rows: dict[object, list[int]] = {}
        for number, document in enumerate(documents):
            if self._has(document):
                rows.setdefault(document, []).append(number)
        turns = [
            (turn, _hash(document), number)
            for document, numbers in rows.items()
            for turn, number in enumerate(sorted(numbers, key=lambda each: _hash(f"row {each}")))
        ]
        return {number for *_, number in sorted(turns)[:limit]}

    def _texts(self, table: Any) -> tuple[list[Any], list[str]]:
        """Return prompts as chat messages, and labels in their tags."""
        given = table.column("prompt").to_pylist() if "prompt" in table.schema.names else None
        # Files for reconstructors hold the reconstructor's prompt: a string, not messages.
        filled = given if given is not None and isinstance(given[0], str) else None
        prompts = [None] * table.num_rows if given is None or filled is not None else given
        if self._label is not None:
            labels = table.column(self._label).to_pylist()
            if self._label == "response":
                return prompts, labels
        else:
            template = self.meta.get("ar_template", AR_TEMPLATE)
            before, _, after = template.partition(EXPLANATION_SLOT)
            labels = [each.removeprefix(before).removesuffix(after) for each in filled or []]
        return prompts, [wrap((each or "").strip()) for each in labels]

    def _check_rows(self, expected: str) -> None:
        found = "questions" if self.asks else "several" if self.several else "one"
        if found != expected:
            said = {
                "questions": f"an oracle's rows ({VECTORS}, {QUESTION}, {ANSWER})",
                "several": f"rows with an explanation of several vectors each ({VECTORS})",
                "one": f"rows with an explanation of one vector each ({VECTOR})",
            }
            raise TrainingError(f"{self.file} has {said[found]}, expected {said[expected]}.")

    def _check_layer(self, table: Any, names: list[str]) -> None:
        layer = self.meta.get("layer")
        column = _layer_column(table.schema.names)
        if layer is None or column is None:
            return
        for name, found in zip(names, table.column(column).to_pylist(), strict=True):
            if found is not None and found != layer:
                raise TrainingError(
                    f"{name}: {column} is {found}, the sidecar says layer {layer}. A verbalizer "
                    "reads one layer: remove the other rows, or correct the sidecar."
                )


def is_held_out(document: object, share: float) -> bool:
    """Return whether a document belongs to the share that training does not see."""
    return _hash(document) < share * 2**64


def _layer_column(names: Sequence[str]) -> str | None:
    return next((name for name in _LAYERS if name in names), None)


def _holds_lists(kind: Any) -> bool:
    import pyarrow as pa

    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return all(
        any(test(each) for test in lists) for each in (kind, getattr(kind, "value_type", None))
    )


def _hash(value: object) -> int:
    return int.from_bytes(hashlib.blake2b(str(value).encode(), digest_size=8).digest(), "big")


def _lists(column: Any, names: list[str], d_model: int) -> tuple[torch.Tensor, list[int]]:
    """Return the vectors of all rows of a column of lists, and the number of each row's."""
    counts = [len(each) if each.is_valid else 0 for each in column]
    each_name = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
    return _vectors(column.flatten(), each_name, d_model), counts


def _vectors(column: Any, names: list[str], d_model: int) -> torch.Tensor:
    import pyarrow as pa
    from pyarrow.compute import call_function

    if isinstance(column, pa.ExtensionArray):  # Such as a tensor.
        column = column.storage
    widths = call_function("list_value_length", [column]).to_pylist()
    for name, width in zip(names, widths, strict=True):
        check_width(name, width or 0, d_model)
    # Through NumPy: a Python number per entry would take minutes.
    flat = column.flatten().to_numpy(zero_copy_only=False).astype("float32", copy=True)
    return torch.from_numpy(flat).reshape(len(names), d_model)


def _sidecar(file: Path) -> dict[str, Any]:
    """Read the file's sidecar, with ``injection`` if it says how vectors are written."""
    path = file.with_name(file.name + sidecar.DATASET_SUFFIX)
    if not path.is_file():
        return {}
    tree = dialects.check_supported(sidecar.read(path), str(path))
    values, _ = dialects.find_fields(tree, str(path))
    scale = (tree.get("extraction") or {}).get("injection_scale")
    says = "injection_mode" in (tree.get("training") or {}) or isinstance(scale, int | float)
    injection = dialects.read_injection(tree, str(path), None)[0] if says else None
    return {**values, "injection": injection}
