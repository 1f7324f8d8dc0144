"""Identify from an explanation alone where its vector was read.

*Position match*: which of five positions of the same document? *Source match*: which of four
documents? An explanation that describes its document but not its position passes the second test
and fails the first. The reconstructor answers by choosing the candidate vector that is nearest to
the text's reconstruction, the verbalizer by choosing the one that makes the text likeliest. A judge
answers from the source texts; see `judged`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from ...checkpoint.reply import remainder, wrap
from ...core.similarity import cosine
from ...verbalize.likelihood import likelihoods
from ...verbalize.verbalizer import Verbalizer
from .candidates import documents, positions
from .intervals import Share, share
from .rows import GroundedRows

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ...explanation.protocols import Explains, Reconstructs

Scores = Callable[[Sequence[str], "Float[Tensor, 'texts d_model']"], "Float[Tensor, ' texts']"]
"""A function from texts and their vectors to how well each two fit; larger is better."""
CHANCE = {"position": 1 / 5, "source": 1 / 4}


def match(
    kind: Literal["position", "source"],
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    scores: Scores,
    seed: int = 0,
) -> Share | None:
    """Return how often the best candidate is the explanation's own vector.

    Args:
        kind: The candidates: positions of the same document, or documents.
        texts: The explanations; a malformed one (``None``) is never right.
        source: Vectors and texts.
        numbers: The number of each explanation's row in `source`.
        scores: How well texts and vectors fit.
        seed: Chooses the candidates.

    Returns:
        ``None`` if no row has enough candidates: five positions, or four documents.
    """
    choose = positions if kind == "position" else documents
    chosen = {n: choose(source, n, seed) for n in numbers}
    rows = [(text, n, chosen[n]) for text, n in zip(texts, numbers, strict=True) if chosen[n]]
    pairs = [(text, other) for text, _, others in rows if text for other in others or ()]
    found = iter(
        scores(
            [text for text, _ in pairs],
            source.vectors[[other for _, other in pairs]],
        ).tolist()
        if pairs
        else []
    )
    right: list[bool] = []
    for text, own, others in rows:
        if not text:
            right.append(False)
            continue
        values: dict[int, float] = {other: next(found) for other in others or ()}
        right.append(max(values, key=values.__getitem__) == own)
    return share(right, CHANCE[kind])


def by_cosine(nla: Reconstructs) -> Scores:
    """Score by the cosine between the text's reconstruction and the vector."""

    def scores(texts: Sequence[str], vectors: Tensor) -> Tensor:
        different = list(dict.fromkeys(texts))
        back = nla.reconstruct(different).float()
        row = {text: number for number, text in enumerate(different)}
        return cosine(back[[row[text] for text in texts]], vectors.float().cpu())

    return scores


def by_likelihood(nla: Explains) -> Scores:
    """Score by the text's log-likelihood when the verbalizer gets the vector, in nats a token."""
    verbalizer = Verbalizer(nla.runtime, nla.checkpoint, nla.prompt)

    def scores(texts: Sequence[str], vectors: Tensor) -> Tensor:
        tagged = [remainder(wrap(text), nla.prompt.opened) for text in texts]
        ids = verbalizer.tokenizer(tagged, add_special_tokens=False)["input_ids"]
        given = torch.ones(len(texts), dtype=torch.bool, device="cpu")
        return likelihoods(verbalizer, vectors, given, ids)

    return scores
