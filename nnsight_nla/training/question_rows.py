"""Check and tokenize the training rows of an activation oracle.

A row has a ``question``, an ``answer`` and ``activation_vectors``, one vector for each slot of its
prompt. ``layer``, the block that the vectors are of, is the checkpoint's unless given. Each row has
its own prompt, as inference renders it (`question_prompt`), and its own slots::

    row = {"question": "Is the tone calm?", "answer": "Yes", "activation_vectors": [[...], [...]]}

Rows come as a list, or from a Parquet file of any size with these columns (`Published`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.question import question_prompt
from ..core.injection import unusable
from ..errors import NLAError, shown
from ..progress import progress
from .rows import IGNORED, Item, Rows, SlotVectors, TrainingError, check_width, mapped


class QuestionRow(TypedDict, total=False):
    """One training example of an oracle."""

    question: str
    """The question, without the slots."""
    answer: str
    """The answer, without tags."""
    activation_vectors: Sequence[Sequence[float]] | Tensor
    """The vectors of its slots, ``[slots, d_model]``."""
    layer: int
    """The block that they are the output of."""


@dataclass(frozen=True)
class Question:
    """A row that was read and not yet tokenized."""

    name: str
    """The row's name in messages."""
    question: str
    """The question."""
    answer: str
    """The answer."""
    vectors: Float[Tensor, "slots d_model"]
    """The vectors, float32."""
    layer: int | None
    """The block that they are of."""


class QuestionSource(Protocol):
    """A source of an oracle's rows other than a list."""

    scratch: Path | None
    """The folder for their memory-mapped vectors during training; ``None`` is the system's."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def questions(self, d_model: int) -> Iterator[list[Question]]:
        """Read the rows in batches; raise on a vector of another width, with its row's name."""
        ...


QuestionsLike = Sequence[Mapping[str, Any]] | QuestionSource
"""A list of `QuestionRow`, or a `QuestionSource` such as `Published`."""


class QuestionRows(Rows):
    """Tokenized rows of an oracle, each with its own prompt and slots."""

    def __init__(
        self, prompts: list[Prompt], answers: list[list[int]], vectors: SlotVectors
    ) -> None:
        """Keep rows whose prompts differ.

        Args:
            prompts: The prompt of each row; rows may share it.
            answers: The ids that follow it; the loss covers only these.
            vectors: The vectors of each row's slots.
        """
        super().__init__((), answers, vectors)
        self.prompts = prompts

    def __getitem__(self, index: int) -> Item:
        item, prompt = super().__getitem__(index), self.prompts[index]
        return {
            **item,
            "input_ids": [*prompt.ids, *item["input_ids"]],
            "labels": [IGNORED] * len(prompt.ids) + item["labels"],
            "sites": list(prompt.sites),
        }

    def lengths(self) -> list[int]:
        """Return the number of tokens of each row, without reading its vectors."""
        answers = super().lengths()
        return [len(p.ids) + answer for p, answer in zip(self.prompts, answers, strict=True)]


def question_rows(rows: QuestionsLike, tokenizer: Any, checkpoint: Checkpoint) -> QuestionRows:
    """Tokenize prompt, answer and end of sequence of each row, with labels on the answer only.

    Raises:
        TrainingError: There are no rows; or one lacks a question, an answer or vectors, or has a
            vector that cannot be written, or a layer not trained on.
    """

    @cache
    def render(question: str, slots: int, layer: int | None) -> Prompt:
        return question_prompt(checkpoint, tokenizer, question, slots=slots, layer=layer)

    prompts: list[Prompt] = []
    answers: list[list[int]] = []
    counts: list[int] = []

    def vectors() -> Iterator[Tensor]:
        with progress("tokenizing", total=len(rows), unit="row") as bar:
            for batch in checked_questions(rows, checkpoint):
                for row in batch:
                    try:
                        prompts.append(render(row.question, len(row.vectors), row.layer))
                    except NLAError as error:
                        raise TrainingError(f"{row.name}: {error}") from error
                told = [row.answer for row in batch]
                encoded = tokenizer(told, add_special_tokens=False)["input_ids"]
                answers.extend([*ids, tokenizer.eos_token_id] for ids in encoded)
                counts.extend(len(row.vectors) for row in batch)
                yield torch.cat([row.vectors for row in batch])
                bar.advance(len(batch))

    if isinstance(rows, Sequence):
        flat = torch.cat(list(vectors()))
    else:
        flat = mapped(vectors(), checkpoint.d_model, rows.scratch)
    return QuestionRows(prompts, answers, SlotVectors(flat, np.cumsum(counts)))


def checked_questions(rows: QuestionsLike, checkpoint: Checkpoint) -> Iterator[list[Question]]:
    """Read rows in batches and check everything that does not need a tokenizer.

    Raises:
        TrainingError: A row does not fit (the message names the first), or there are no rows.
    """
    if len(rows) == 0:
        raise TrainingError("There are no rows to train on.")
    d_model = checkpoint.d_model
    listed: Iterable[list[Question]] = (
        ([row] for row in _listed(rows, d_model))
        if isinstance(rows, Sequence)
        else rows.questions(d_model)
    )
    for batch in listed:
        for row in batch:
            _check(row)
        yield batch


def _listed(rows: Sequence[Mapping[str, Any]], d_model: int) -> Iterator[Question]:
    for number, row in enumerate(rows):
        name = f"Row {number}"
        missing = [key for key in ("question", "answer", "activation_vectors") if key not in row]
        if missing:
            raise TrainingError(
                f"{name} has no {', '.join(missing)}; an oracle's row has question, answer and "
                f"activation_vectors. It has {', '.join(row)}."
            )
        vectors = torch.as_tensor(row["activation_vectors"], dtype=torch.float32, device="cpu")
        if vectors.ndim != 2:
            raise TrainingError(
                f"{name}: activation_vectors has shape {list(vectors.shape)}, expected "
                f"[slots, {d_model}]. For one vector: vector[None]."
            )
        check_width(name, vectors.shape[-1], d_model)
        yield Question(name, row["question"], row["answer"], vectors, row.get("layer"))


def _check(row: Question) -> None:
    for key in ("question", "answer"):
        text: Any = getattr(row, key)
        if not isinstance(text, str) or not text.strip():
            raise TrainingError(
                f"{row.name}: the {key} is empty ({shown(text)}). Write one, or remove the row."
            )
    if not len(row.vectors):
        raise TrainingError(f"{row.name} has no vectors. Remove the row.")
    for number, reason in unusable(row.vectors).items():
        raise TrainingError(
            f"{row.name}: vector {number} of activation_vectors {reason}. Remove the row."
        )
