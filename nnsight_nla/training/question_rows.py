"""Check and tokenize the training rows of an activation oracle.

A row has a ``question``, an ``answer`` and ``activation_vectors``, one vector for each slot of its
prompt. ``layer``, the block that the vectors are of, is the checkpoint's unless given. Each row has
its own prompt, as inference renders it (`question_prompt`), and its own slots::

    row = {"question": "Is the tone calm?", "answer": "Yes", "activation_vectors": [[...], [...]]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypedDict, cast

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.question import question_prompt
from ..core.injection import unusable
from ..errors import NLAError, shown
from ..progress import progress
from .rows import IGNORED, Item, Rows, TrainingError, check_width


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


class QuestionRows(Rows):
    """Tokenized rows of an oracle, each with its own prompt and slots."""

    def __init__(
        self, prompts: list[Prompt], answers: list[list[int]], vectors: list[Tensor]
    ) -> None:
        """Keep rows whose prompts differ.

        Args:
            prompts: The prompt of each row.
            answers: The ids that follow it; the loss covers only these.
            vectors: The vectors of each row's slots.
        """
        tails = [[*p.ids, *answer] for p, answer in zip(prompts, answers, strict=True)]
        super().__init__((), tails, vectors)
        self.prompts = prompts

    def __getitem__(self, index: int) -> Item:
        item, prompt = super().__getitem__(index), self.prompts[index]
        start = len(prompt.ids)
        item["labels"] = [IGNORED] * start + item["labels"][start:]
        item["sites"] = list(prompt.sites)
        return item


def question_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, checkpoint: Checkpoint
) -> QuestionRows:
    """Tokenize prompt, answer and end of sequence of each row, with labels on the answer only.

    Raises:
        TrainingError: They are not a list, or there are none. Or a row lacks a question, an answer
            or vectors, or has a vector that cannot be written, or a layer not trained on.
    """
    if not isinstance(cast("Any", rows), Sequence):
        raise TrainingError(
            f"The rows of an oracle come as a list of QuestionRow, got {type(rows).__name__}. Read "
            "the file, and pass train_verbalizer(model, tokenizer, [QuestionRow(...), ...])."
        )
    if len(rows) == 0:
        raise TrainingError("There are no rows to train on.")

    @cache
    def render(question: str, slots: int, layer: int | None) -> Prompt:
        return question_prompt(checkpoint, tokenizer, question, slots=slots, layer=layer)

    prompts: list[Prompt] = []
    answers: list[list[int]] = []
    vectors: list[Tensor] = []
    with progress("tokenizing", total=len(rows), unit="row") as bar:
        for row in _listed(rows, checkpoint.d_model):
            _check(row)
            try:
                prompts.append(render(row.question, len(row.vectors), row.layer))
            except NLAError as error:
                raise TrainingError(f"{row.name}: {error}") from error
            ids = tokenizer.encode(row.answer, add_special_tokens=False)
            answers.append([*ids, tokenizer.eos_token_id])
            vectors.append(row.vectors)
            bar.advance(1)
    return QuestionRows(prompts, answers, vectors)


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
