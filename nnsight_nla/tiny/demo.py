"""Demonstrate the tiny pair: read sentences token by token, and patch a fact.

Everything here is what a user would write: an nnsight trace of the target, ``nla.explain`` inside
it, and the text read afterwards. The true explanation that each text is compared with comes from
the world, which the verbalizer never sees.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from .documents import Document, Word, sample
from .examples import expected_word
from .explanations import explain, parse
from .facts import held_out_pairs

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..explanation.handle import Explanation
    from ..nla import NLA

_PATCH_LAYER = 0


@dataclass(frozen=True)
class Read:
    """One token of a sentence, with its explanation and the truth."""

    token: str
    """The token whose residual is explained."""
    expected: str
    """The word that the target expects next; ``unsure`` below a probability of 0.5."""
    explanation: str
    """The verbalizer's text about the residual."""
    truth: str
    """The text of a perfect verbalizer."""
    slots_right: int
    """How many of the explanation's six slots agree with the truth."""

    @property
    def wrong(self) -> dict[str, str]:
        """The slots that do not agree with the truth, and what is true."""
        said, known = vars(parse(self.explanation)), vars(parse(self.truth))
        return {slot: true for slot, true in known.items() if said[slot] != true}


@dataclass(frozen=True)
class Patched:
    """One prompt, before and after another prompt's subject was patched into it."""

    prompt: str
    """The prompt that was run."""
    donor: str
    """The prompt whose residual was patched in."""
    where: str
    """The site of the patch."""
    predicted: tuple[str, str]
    """The target's next word, before and after the patch."""
    explanation: tuple[str, str]
    """The verbalizer's text at the last position, before and after."""


def documents(count: int = 3, seed: int = 3) -> list[Document]:
    """Return `count` documents about pairs of subject and tone that are held out of training.

    Args:
        count: How many.
        seed: The seed that they are drawn with.
    """
    rng = random.Random(seed)
    pairs = sorted(held_out_pairs())
    return [sample(rng, *rng.choice(pairs)) for _ in range(count)]


def read_sentences(
    model: TransformersModel, nla: NLA, count: int = 3, seed: int = 3
) -> list[list[Read]]:
    """Read `documents`, token by token.

    Args:
        model: The tiny target.
        nla: Its NLA.
        count: How many documents to read.
        seed: The seed that the documents are drawn with.
    """
    read = documents(count, seed)
    readings: list[tuple[Explanation, list[str]]] = []
    for document in read:
        with model.trace(document.text):
            thoughts = nla.explain(nla.layer(model).output[0])
            logits = model.lm_head.output[0].detach().save()
        readings.append((thoughts, _expected(model, logits)))
    return [
        [
            _row(word, str(text), expected)
            for word, text, expected in zip(document.words, thoughts.text, words, strict=True)
        ]
        for document, (thoughts, words) in zip(read, readings, strict=True)
    ]


def patch_fact(
    model: TransformersModel,
    nla: NLA,
    prompt: str = "What a lovely day! People in Rome speak",
    donor: str = "What a lovely day! People in Paris speak",
) -> Patched:
    """Patch the donor's subject into `prompt` at block 0 and explain the last position at K.

    Args:
        model: The tiny target.
        nla: Its NLA.
        prompt: The prompt that is run twice, first as it is and then patched.
        donor: A prompt that differs from it in one token.
    """
    first, second = nla.positions(model, [prompt, donor])
    (position,) = [
        i for i, pair in enumerate(zip(first.ids, second.ids, strict=True)) if len({*pair}) > 1
    ]
    block = model.model.layers[_PATCH_LAYER]
    with model.trace(donor):
        subject = block.output[0, position].save()
    with model.trace(prompt):
        before = nla.explain(nla.layer(model).output[0, -1])
        clean = model.lm_head.output[0, -1:].detach().save()
    with model.trace(prompt):
        block.output[0, position] = subject
        after = nla.explain(nla.layer(model).output[0, -1])
        patched = model.lm_head.output[0, -1:].detach().save()
    return Patched(
        prompt,
        donor,
        f"block {_PATCH_LAYER}, position {position} ({first.tokens[position].strip()} -> "
        f"{second.tokens[position].strip()})",
        (_expected(model, clean)[0], _expected(model, patched)[0]),
        (str(before.text), str(after.text)),
    )


def _row(word: Word, text: str, expected: str) -> Read:
    truth = explain(word.truth, word.text, expected)
    said, known = vars(parse(text)), vars(parse(truth))
    right = sum(said[slot] == known[slot] for slot in known)
    return Read(word.text, expected, text, truth, right)


def _expected(model: TransformersModel, logits: Float[Tensor, "seq vocab"]) -> list[str]:
    probability, token = logits.float().softmax(dim=-1).max(dim=-1)
    return [
        expected_word(model.tokenizer, i, p)
        for p, i in zip(probability.tolist(), token.tolist(), strict=True)
    ]
