"""Training rows in the published schema, and what they become: token ids beside a vector.

A row is a mapping, as the published parquet files hold it: ``prompt`` (chat messages, with a
literal ``<INJECT>`` where the marker goes), ``response`` (the explanation in its tags) and
``activation_vector`` (raw, of any length but zero); provenance columns are ignored. The prompt is
the same in every row, because a verbalizer has one, and it has to be the one that the checkpoint
will be served with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import Dataset

from ..checkpoint import EXPLANATION_SLOT, MARKER_SLOT, Checkpoint
from ..errors import NLAError
from ..injection import unusable
from ..prompting import Prompt, extract

INJECT = "<INJECT>"
"""Where the marker goes in a row's prompt."""
IGNORED = -100
"""The label of a token that no loss is taken on."""


class TrainingError(NLAError):
    """The rows, the model and the checkpoint of a training do not fit each other."""


class Row(TypedDict):
    """One training example."""

    prompt: Sequence[Mapping[str, str]]
    """Chat messages: one user message with one ``<INJECT>``."""
    response: str
    """``<explanation>``, the text, ``</explanation>``, each on a line."""
    activation_vector: Sequence[float] | Tensor
    """The output of block K of the target at one token, ``[d_model]``."""


Item = dict[str, Any]
"""A row, tokenized: ``input_ids``, ``labels`` (AV) and ``vector``."""


class Rows(Dataset[Item]):
    """Tokenized rows; what `transformers.Trainer` reads."""

    def __init__(self, ids: list[list[int]], start: int, vectors: Tensor) -> None:
        """Keep `ids` whose loss starts at position `start`, and the vector of each."""
        self.ids, self.start, self.vectors = ids, start, vectors

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Item:
        ids = self.ids[index]
        labels = [IGNORED] * self.start + ids[self.start :]
        return {"input_ids": ids, "labels": labels, "vector": self.vectors[index]}


def verbalizer_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, checkpoint: Checkpoint
) -> tuple[Rows, Prompt]:
    """Prompt, response and end of sequence as ids, with labels on the response only.

    The prompt's ids are those that inference runs (`Prompt.render`), and the response is encoded
    apart from it, as it is when it is generated.

    Raises:
        TrainingError: A row's prompt is another one, or has no or several ``<INJECT>``, its
            vector has another width or no direction, or there are no rows.
    """
    for number, row in enumerate(rows):
        _check_prompt(number, row["prompt"], checkpoint)
    prompt = Prompt.render(checkpoint, tokenizer)
    end = [tokenizer.eos_token_id]
    responses = [tokenizer.encode(row["response"], add_special_tokens=False) for row in rows]
    ids = [[*prompt.ids, *response, *end] for response in responses]
    return Rows(ids, len(prompt.ids), _vectors(rows, checkpoint)), prompt


def reconstructor_rows(
    rows: Sequence[Mapping[str, Any]], tokenizer: Any, checkpoint: Checkpoint
) -> Rows:
    """The reconstructor's prompt around each explanation, special tokens included.

    Raises:
        TrainingError: The checkpoint has no reconstructor's template, or a row's vector does
            not fit.
    """
    template = checkpoint.ar_template
    if template is None:
        raise TrainingError(
            "The checkpoint has no ar_template, so there is no prompt to reconstruct from. Give it "
            "one: describe(..., ar_template=AR_TEMPLATE)."
        )
    texts = [template.replace(EXPLANATION_SLOT, extract(row["response"])[0]) for row in rows]
    ids = [list(tokenizer.encode(text)) for text in texts]
    return Rows(ids, 0, _vectors(rows, checkpoint))


def collate(items: Sequence[Item]) -> dict[str, Tensor]:
    """Pad on the right: attention is causal, so no real token sees the padding.

    Returns:
        ``input_ids`` and ``labels`` of ``[batch, seq]``, ``vectors`` of ``[batch, d_model]`` and
        ``last``, each row's last real position.
    """
    width = max(len(item["input_ids"]) for item in items)
    return {
        # The padding's id is never seen: any valid one does.
        "input_ids": torch.tensor([_pad(item["input_ids"], width, 0) for item in items]),
        "labels": torch.tensor([_pad(item["labels"], width, IGNORED) for item in items]),
        "vectors": torch.stack([item["vector"] for item in items]),
        "last": torch.tensor([len(item["input_ids"]) - 1 for item in items]),
    }


def _pad(row: list[int], width: int, value: int) -> list[int]:
    return row + [value] * (width - len(row))


def _check_prompt(number: int, prompt: Sequence[Mapping[str, str]], checkpoint: Checkpoint) -> None:
    content = "".join(message["content"] for message in prompt)
    found = content.count(INJECT)
    if found != 1:
        raise TrainingError(
            f"Row {number}: the prompt has {found} times {INJECT}, expected exactly one, where the "
            f"marker goes: {content[:80]!r}."
        )
    if [message["role"] for message in prompt] != ["user"]:
        roles = ", ".join(message["role"] for message in prompt)
        raise TrainingError(
            f"Row {number}: the prompt has the roles {roles}; a verbalizer is asked in one user "
            "message."
        )
    template = content.replace(INJECT, MARKER_SLOT)
    if template != checkpoint.template:
        raise TrainingError(
            f"Row {number}: its prompt is not the checkpoint's template, which the verbalizer "
            f"would be served with. It begins {template[:60]!r}, the template "
            f"{checkpoint.template[:60]!r}. Describe the checkpoint with the rows' own prompt: "
            f"describe(..., template=content.replace('{INJECT}', '{MARKER_SLOT}'))."
        )


def _vectors(
    rows: Sequence[Mapping[str, Any]], checkpoint: Checkpoint
) -> Float[Tensor, "rows d_model"]:
    if len(rows) == 0:
        raise TrainingError("There are no rows to train on.")
    found: list[Tensor] = []
    for number, row in enumerate(rows):
        vector = torch.as_tensor(row["activation_vector"], dtype=torch.float32)
        if vector.shape != (checkpoint.d_model,):
            raise TrainingError(
                f"Row {number}: activation_vector has shape {list(vector.shape)}, expected "
                f"[{checkpoint.d_model}] (the checkpoint's d_model)."
            )
        found.append(vector)
    vectors = torch.stack(found)
    for number, reason in unusable(vectors).items():
        raise TrainingError(f"Row {number}: activation_vector {reason}. Leave the row out.")
    return vectors
