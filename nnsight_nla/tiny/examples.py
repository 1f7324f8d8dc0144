"""Residuals of the target beside their gold explanations: what the pair is trained and measured on.

Documents are read in nnsight traces, a few hundred at once; in each, a few positions are drawn,
and the residual at K there is one example. Its explanation follows from the world's truth at that
word, except for the word expected next, which is the target's own: its most likely token, or
``unsure``.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..checkpoint.checkpoint import AV_TEMPLATE, MARKER_SLOT
from ..checkpoint.reply import wrap
from ..training import INJECT, Row
from .documents import Document, join, sample
from .explanations import END, UNSURE, explain
from .facts import Pair
from .target import K

_BATCH = 200


@dataclass(frozen=True)
class Examples:
    """Rows of residuals, each with where it came from and what is true of it."""

    vectors: Float[Tensor, "rows d_model"]
    """The output of block K of the target, float32."""
    explanations: tuple[str, ...]
    """The gold explanation of each."""
    prompts: tuple[str, ...]
    """The text up to and including the token that the residual stands at."""

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, rows: slice) -> Examples:
        return Examples(self.vectors[rows], self.explanations[rows], self.prompts[rows])

    def training_rows(self) -> list[Row]:
        """The same in the published schema."""
        content = AV_TEMPLATE.replace(MARKER_SLOT, INJECT)
        prompt = [{"role": "user", "content": content}]
        return [
            Row(prompt=prompt, response=wrap(text), activation_vector=vector)
            for vector, text in zip(self.vectors, self.explanations, strict=True)
        ]


def collect(
    model: Any, pairs: Sequence[Pair], *, documents: int, per_document: int = 3, seed: int
) -> Examples:
    """Write documents, read them with the target, and draw examples from them.

    Args:
        model: The target, a `TransformersModel`.
        pairs: The subjects and tones to write about.
        documents: How many documents.
        per_document: How many positions are drawn from each.
        seed: Of the documents and the positions.
    """
    rng = random.Random(seed)
    vectors: list[Tensor] = []
    explanations: list[str] = []
    prompts: list[str] = []
    for start in range(0, documents, _BATCH):
        batch = [sample(rng, *rng.choice(pairs)) for _ in range(min(_BATCH, documents - start))]
        residuals, expected = _read(model, batch)
        for document, residual, words in zip(batch, residuals, expected, strict=True):
            for i in rng.sample(range(len(document.words)), per_document):
                word = document.words[i]
                vectors.append(residual[i])
                explanations.append(explain(word.truth, word.text, words[i]))
                prompts.append(join(each.text for each in document.words[: i + 1]))
    return Examples(torch.stack(vectors), tuple(explanations), tuple(prompts))


def _read(model: Any, documents: Sequence[Document]) -> tuple[list[Tensor], list[list[str]]]:
    """Each document's residuals at K, ``[words, d_model]``, and the words expected next."""
    with torch.no_grad(), model.trace([document.text for document in documents]):
        residual = model.model.layers[K].output.detach().save()
        logits = model.lm_head.output.detach().save()
    probability, token = logits.float().softmax(dim=-1).max(dim=-1)
    residuals: list[Tensor] = []
    expected: list[list[str]] = []
    for row, document in enumerate(documents):
        # nnsight pads a batch on the left, and a word is a token: the last positions are the words.
        real = slice(-len(document.words), None)
        residuals.append(residual[row, real].float())
        expected.append(
            [
                expected_word(model.tokenizer, i, float(p))
                for i, p in zip(token[row, real].tolist(), probability[row, real], strict=True)
            ]
        )
    return residuals, expected


def expected_word(tokenizer: Any, token: int, probability: float) -> str:
    """The `next` slot's truth: the target's own best word, where it is more likely than not.

    Args:
        tokenizer: The target's.
        token: The most likely next token's id.
        probability: The target's probability of it.
    """
    if probability < 0.5:
        return UNSURE
    return END if token == tokenizer.eos_token_id else tokenizer.decode([token]).strip() or END
