"""Residuals of the tiny target, each with its true explanation.

`collect` writes documents, reads them with the target in nnsight traces of a few hundred texts,
and draws a few positions from each; the residual at K there is one example. Its explanation
follows from what the world says is true after that word, except for the word expected next, which
comes from the target: its most likely token, or ``unsure``::

    held_out = collect(model, sorted(held_out_pairs()), documents=100, seed=0)
    nla.explain(held_out.vectors).text      # compare with held_out.explanations
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from .documents import Document, join, sample
from .explanations import END, UNSURE, explain
from .facts import Pair

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

K = 3
"""The block of the target whose output is explained, counted from 0."""
_BATCH = 200


@dataclass(frozen=True)
class Examples:
    """Rows of residuals, each with its text and its true explanation."""

    vectors: Float[Tensor, "rows d_model"] | Float[Tensor, "rows window d_model"]
    """The output of block K of the target, float32; with a window, those of several tokens, the
    last of which the explanation is of."""
    explanations: tuple[str, ...]
    """The true explanation of each vector."""
    prompts: tuple[str, ...]
    """The text up to and including the token whose residual the vector is."""

    def __len__(self) -> int:
        return len(self.explanations)

    def __getitem__(self, rows: slice) -> Examples:
        return Examples(self.vectors[rows], self.explanations[rows], self.prompts[rows])


def collect(
    model: TransformersModel,
    pairs: Sequence[Pair],
    *,
    documents: int,
    per_document: int = 3,
    seed: int,
    layer: int = K,
    window: int | None = None,
) -> Examples:
    """Write documents, read them with the target, and draw examples from them.

    Args:
        model: The target.
        pairs: The subjects and tones to write about.
        documents: How many documents to write.
        per_document: How many positions to draw from each.
        seed: The seed of the documents and the positions.
        layer: The block whose output is read.
        window: The number of adjacent tokens whose residuals are one example.
    """
    rng = random.Random(seed)
    vectors: list[Tensor] = []
    explanations: list[str] = []
    prompts: list[str] = []
    for start in range(0, documents, _BATCH):
        batch = [sample(rng, *rng.choice(pairs)) for _ in range(min(_BATCH, documents - start))]
        residuals, expected = _read(model, batch, layer)
        for document, residual, words in zip(batch, residuals, expected, strict=True):
            for i in rng.sample(range((window or 1) - 1, len(document.words)), per_document):
                word = document.words[i]
                vectors.append(residual[i] if window is None else residual[i + 1 - window : i + 1])
                explanations.append(explain(word.truth, word.text, words[i]))
                prompts.append(join(each.text for each in document.words[: i + 1]))
    return Examples(torch.stack(vectors), tuple(explanations), tuple(prompts))


def expected_word(tokenizer: Any, token: int, probability: float) -> str:
    """Return the true value of the `next` slot: the target's most likely word, or ``unsure``.

    Args:
        tokenizer: The target's tokenizer.
        token: The id of the most likely next token.
        probability: The target's probability of it; below 0.5 the word is ``unsure``.
    """
    if probability < 0.5:
        return UNSURE
    return END if token == tokenizer.eos_token_id else tokenizer.decode([token]).strip() or END


def _read(
    model: TransformersModel, documents: Sequence[Document], layer: int
) -> tuple[list[Tensor], list[list[str]]]:
    """Return each document's residuals, ``[words, d_model]``, and the words expected next."""
    with torch.no_grad(), model.trace([document.text for document in documents]):
        residual = model.model.layers[layer].output.detach().save()
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
