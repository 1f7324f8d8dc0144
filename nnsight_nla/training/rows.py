"""Check and tokenize training rows in the published schema.

A row has a ``prompt`` (chat messages, with a literal ``<INJECT>`` where the marker goes), a
``response`` (the explanation in its tags) and an ``activation_vector`` (raw, of any length but
zero); provenance columns are ignored. The prompt is the same in every row, because a verbalizer
has one prompt, and it has to be the one that inference will use.

Rows come as a list of mappings, or from a Parquet file of any size (`Published`). Both are read one
`Batch` at a time. Only the ids of the responses and the vectors are kept, and the vectors of a file
are memory-mapped, so that a million rows train on a machine that could not hold them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Required, TypedDict, cast

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from ..checkpoint.checkpoint import EXPLANATION_SLOT, MARKER_SLOT, Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.reply import CLOSE, OPEN, extract, proper, remainder
from ..core.injection import unusable
from ..errors import NLAError
from ..progress import progress
from ..storage.atomic import write_errors

INJECT = "<INJECT>"
"""Where the marker goes in a row's prompt."""
IGNORED = -100
"""The label of a token that the loss ignores."""


class TrainingError(NLAError):
    """Rows, model and checkpoint of a training do not fit each other, or the disk is full."""


class Row(TypedDict, total=False):
    """One training example."""

    prompt: Required[Sequence[Mapping[str, str]]]
    """Chat messages: one user message with one ``<INJECT>`` for each vector."""
    response: Required[str]
    """``<explanation>``, the text, ``</explanation>``, each on a line."""
    activation_vector: Sequence[float] | Tensor
    """The output of block K of the target at one token, ``[d_model]``."""
    activation_vectors: Sequence[Sequence[float]] | Tensor
    """Instead, for a verbalizer that reads several: one for each marker, ``[vectors, d_model]``."""


@dataclass(frozen=True)
class Batch:
    """Some rows."""

    names: list[str]
    """The name of each row in messages: its number, and its file if it has one."""
    prompts: list[Any]
    """Chat messages; ``None`` where the rows have none and get those of the checkpoint."""
    responses: list[str]
    """The explanations, in their tags."""
    vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows vectors d_model"]
    """The vectors, float32."""


class Source(Protocol):
    """A source of rows other than a list."""

    scratch: Path | None
    """The folder for their memory-mapped vectors during training; ``None`` is the system's."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def batches(self, d_model: int, slots: int = 1) -> Iterator[Batch]:
        """Read the rows, each with `slots` vectors.

        Raises:
            TrainingError: A row has a vector of another width, or another number of them.
        """
        ...


RowsLike = Sequence[Mapping[str, Any]] | Source
"""A list of `Row`, or a `Source` such as `Published`."""
Item = dict[str, Any]
"""A row, tokenized: ``input_ids``, ``labels`` (AV) and ``vector``."""


@dataclass(frozen=True)
class SlotVectors:
    """The vectors of rows with different numbers of slots, in memory or mapped into it."""

    flat: Float[Tensor, "vectors d_model"]
    """Those of all rows."""
    ends: np.ndarray
    """The end of each row in it."""

    def __getitem__(self, index: int) -> Float[Tensor, "slots d_model"]:
        """Return the vectors of a row."""
        return self.flat[self.ends[index - 1] if index else 0 : self.ends[index]]


class Rows(Dataset[Item]):
    """Tokenized rows, as a data set for `transformers.Trainer`."""

    def __init__(
        self,
        prompt: Sequence[int],
        tails: list[list[int]],
        vectors: Tensor | SlotVectors,
        sites: Sequence[int] = (),
    ) -> None:
        """Keep rows that begin with `prompt` and continue with their own ids.

        Args:
            prompt: The ids that all rows begin with; the loss ignores them.
            tails: The ids that follow in each row.
            vectors: The vector of each row, in memory or mapped into it; for an oracle, those of
                the row's slots.
            sites: The position of each marker, if each gets a vector of its own.
        """
        self.prompt, self.vectors = list(prompt), cast("Any", vectors)
        self.sites = list(sites)
        self._ends = np.cumsum([len(tail) for tail in tails])
        self._ids = np.concatenate([np.asarray(tail, dtype=np.int32) for tail in tails])

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Item:
        start = self._ends[index - 1] if index else 0
        tail: list[int] = self._ids[start : self._ends[index]].tolist()
        labels = [IGNORED] * len(self.prompt) + tail
        return {
            "input_ids": self.prompt + tail,
            "labels": labels,
            "vector": self.vectors[index],
            **({"sites": self.sites} if self.sites else {}),
        }

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, without reading its vector."""
        return (np.diff(self._ends, prepend=0) + len(self.prompt)).tolist()


def verbalizer_rows(rows: RowsLike, tokenizer: Any, checkpoint: Checkpoint) -> tuple[Rows, Prompt]:
    """Tokenize prompt, response and end of sequence, with labels on the response only.

    The prompt's ids are those of inference (`Prompt.render`); the response is encoded separately,
    as it is when it is generated.

    Raises:
        TrainingError: A row's prompt differs, or does not contain ``<INJECT>`` exactly once, its
            response is empty, its vector has another width or is zero, or there are no rows.
    """
    rendered: list[Prompt] = []
    tails: list[list[int]] = []

    def tokenize(batch: Batch) -> None:
        if not rendered:
            rendered.append(Prompt.render(checkpoint, tokenizer))
        told = [remainder(each, rendered[0].opened) for each in batch.responses]
        encoded = tokenizer(told, add_special_tokens=False)["input_ids"]
        tails.extend([*ids, tokenizer.eos_token_id] for ids in encoded)

    vectors = _read(rows, checkpoint, tokenize, prompts=True)
    sites = rendered[0].sites if checkpoint.slots > 1 else ()
    return Rows(rendered[0].ids, tails, vectors, sites), rendered[0]


def reconstructor_rows(rows: RowsLike, tokenizer: Any, checkpoint: Checkpoint) -> Rows:
    """Tokenize the reconstructor's prompt of each explanation, with special tokens.

    Raises:
        TrainingError: The checkpoint has no template for the reconstructor, a row's response is
            empty, or its vector does not fit.
    """
    template = checkpoint.ar_template
    if template is None:
        raise TrainingError(
            "The checkpoint has no ar_template, the prompt of a reconstructor. Add one: "
            "describe(..., ar_template=AR_TEMPLATE)."
        )
    tails: list[list[int]] = []

    def tokenize(batch: Batch) -> None:
        explanations = (extract(response)[0] for response in batch.responses)
        texts = [template.replace(EXPLANATION_SLOT, each) for each in explanations]
        tails.extend(tokenizer(texts)["input_ids"])

    vectors = _read(rows, checkpoint, tokenize, prompts=False)
    return Rows((), tails, vectors)


def collate(items: Sequence[Item]) -> dict[str, Tensor]:
    """Pad items on the right: attention is causal, so no real token sees the padding.

    Returns:
        ``input_ids`` and ``labels`` of ``[batch, seq]``, ``vectors`` of ``[batch, d_model]`` and
        ``last``, each row's last real position. For rows with several vectors, ``vectors`` of
        ``[batch, slots, d_model]`` and ``sites`` of ``[batch, slots]``, negative where a row has
        fewer slots.
    """
    width = max(len(item["input_ids"]) for item in items)
    slots = max(len(item.get("sites", ())) for item in items)
    sites = [_pad(item["sites"], slots, -1) for item in items if slots]
    return {
        # Nothing sees the padding, so any valid id will do.
        "input_ids": torch.tensor(
            [_pad(item["input_ids"], width, 0) for item in items], device="cpu"
        ),
        "labels": torch.tensor(
            [_pad(item["labels"], width, IGNORED) for item in items], device="cpu"
        ),
        "vectors": pad_sequence([item["vector"] for item in items], batch_first=True),
        **({"sites": torch.tensor(sites, device="cpu")} if slots else {}),
        "last": torch.tensor([len(item["input_ids"]) - 1 for item in items], device="cpu"),
    }


def checked_batches(rows: RowsLike, checkpoint: Checkpoint, *, prompts: bool) -> Iterator[Batch]:
    """Read rows in batches and check everything that does not need a tokenizer.

    Args:
        rows: A list or a file of rows.
        checkpoint: The width of a vector, and the prompt.
        prompts: Whether to check the rows' prompts; a reconstructor does not read them.

    Raises:
        TrainingError: A row does not fit (the message names the first), or there are no rows.
    """
    if len(rows) == 0:
        raise TrainingError("There are no rows to train on.")
    d_model, slots = checkpoint.d_model, checkpoint.slots
    listed = isinstance(rows, Sequence)
    for batch in [_listed(rows, d_model, slots)] if listed else rows.batches(d_model, slots):
        if prompts:
            for name, messages in zip(batch.names, batch.prompts, strict=True):
                if messages is not None:
                    _check_prompt(name, messages, checkpoint)
        for name, response in zip(batch.names, batch.responses, strict=True):
            _check_response(name, response)
        for number, reason in unusable(batch.vectors.reshape(-1, d_model)).items():
            name, which = batch.names[number // slots], number % slots
            what = "activation_vector" if slots == 1 else f"vector {which} of activation_vectors"
            raise TrainingError(f"{name}: {what} {reason}. Remove the row.")
        yield batch


def check_width(name: str, width: int, d_model: int) -> None:
    """Raise on a vector of another width."""
    if width != d_model:
        raise TrainingError(
            f"{name}: activation_vector has shape [{width}], expected [{d_model}] (the "
            "checkpoint's d_model). Train from the model that the rows were read from."
        )


def check_count(name: str, count: int, slots: int) -> None:
    """Raise on a row with another number of vectors than the prompt has markers."""
    if count != slots:
        raise TrainingError(
            f"{name}: activation_vectors has {count} vectors, expected {slots}, one for each "
            "marker of the checkpoint's prompt (Checkpoint.vectors)."
        )


def _pad(row: list[int], width: int, value: int) -> list[int]:
    return row + [value] * (width - len(row))


def _read(
    rows: RowsLike, checkpoint: Checkpoint, tokenize: Callable[[Batch], None], *, prompts: bool
) -> Float[Tensor, "rows d_model"]:
    """Pass every batch to `tokenize` and return the vectors."""
    parts = checked_batches(rows, checkpoint, prompts=prompts)

    def vectors() -> Iterator[Tensor]:
        with progress("tokenizing", total=len(rows), unit="row") as bar:
            for batch in parts:
                tokenize(batch)
                yield batch.vectors
                bar.advance(len(batch.names))

    if isinstance(rows, Sequence):
        return torch.cat(list(vectors()))
    flat = mapped(vectors(), checkpoint.d_model, rows.scratch)
    return flat if checkpoint.slots == 1 else flat.reshape(-1, checkpoint.slots, flat.shape[-1])


def _listed(rows: Sequence[Mapping[str, Any]], d_model: int, slots: int) -> Batch:
    names = [f"Row {number}" for number in range(len(rows))]
    column = "activation_vector" if slots == 1 else "activation_vectors"
    for name, row in zip(names, rows, strict=True):
        if column not in row:
            raise TrainingError(
                f"{name} has no {column}; the checkpoint's prompt has a marker for "
                f"{'one vector' if slots == 1 else f'each of {slots} vectors'}. "
                f"It has {', '.join(row)}."
            )
    vectors = [torch.as_tensor(row[column], dtype=torch.float32, device="cpu") for row in rows]
    for name, vector in zip(names, vectors, strict=True):
        if slots > 1:
            check_count(name, len(vector), slots)
        check_width(name, vector.shape[-1], d_model)
    prompts, responses = ([row[key] for row in rows] for key in ("prompt", "response"))
    return Batch(names, prompts, responses, torch.stack(vectors))


def mapped(
    parts: Iterable[Tensor], d_model: int, scratch: Path | None
) -> Float[Tensor, "rows d_model"]:
    """Write vectors to a file without a name, and map it into memory.

    They are written to the file and not through the map, so that a full disk raises an error and
    does not kill the process. A file without a name is gone when the process is, however it ends.
    """
    path = Path(scratch or tempfile.gettempdir()) / "vectors"
    with (
        write_errors(path, advice="Then try again.", error=TrainingError),
        tempfile.TemporaryFile(prefix="vectors-", dir=scratch) as file,
    ):
        for part in parts:
            file.write(part.contiguous().numpy().tobytes())
        file.flush()
        # The map stays valid after the file is closed.
        flat = torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r+"))
    return flat.reshape(-1, d_model)


def _check_response(name: str, response: Any) -> None:
    if not isinstance(response, str) or not extract(response)[0]:
        raise TrainingError(
            f"{name}: the response is empty ({response!r}), so there is nothing to learn. "
            "Label the row, or remove it."
        )
    reason = proper(response)
    if reason is not None:
        raise TrainingError(
            f"{name}: {reason}, and a verbalizer would learn to write that: {response[:60]!r}. "
            f"Write '{OPEN}\\n' + text + '\\n{CLOSE}'."
        )


def _check_prompt(name: str, prompt: Sequence[Mapping[str, str]], checkpoint: Checkpoint) -> None:
    content = "".join(message["content"] for message in prompt)
    found, slots = content.count(INJECT), checkpoint.slots
    if found != slots:
        expected = "exactly once, where the" if slots == 1 else f"{slots} times, where each"
        raise TrainingError(
            f"{name}: the prompt contains {INJECT} {found} times, expected {expected} marker goes: "
            f"{content[:80]!r}."
        )
    if [message["role"] for message in prompt] != ["user"]:
        roles = ", ".join(message["role"] for message in prompt)
        raise TrainingError(f"{name}: the prompt has the roles {roles}, expected one user message.")
    template = content.replace(INJECT, MARKER_SLOT)
    if template != checkpoint.template:
        raise TrainingError(
            f"{name}: the prompt differs from the checkpoint's template, which inference uses. The "
            f"prompt begins {template[:60]!r}, the template {checkpoint.template[:60]!r}. Describe "
            "the checkpoint with the prompt of the rows: "
            f"describe(..., template=content.replace('{INJECT}', '{MARKER_SLOT}'))."
        )
