"""Demonstrate the NLA of SmolLM2: read sentences at their last token, and patch a fact.

Everything here is what a user would write: an nnsight trace of the target, ``nla.explain`` inside
it, and the text read afterwards. What each text is compared with, the sentence itself and the
target's own next tokens, the verbalizer never sees.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from .explanations import Slots, parse, spelled, truth

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..experiments import Sweep
    from ..nla import NLA

SENTENCES = (
    "Bees live in large colonies. In the summer they fly from flower to flower to collect",
    "My grandmother taught me how to bake bread. First we mixed the flour and the water, and then",
    "The telescope was first used to look at the night sky by the Italian astronomer",
    "And God said to Moses, Go down to the people and tell them that the",
)
"""What the demonstration reads."""
FACT = ("The capital of France is the city of", "The capital of Italy is the city of")
"""The prompt that a value is taken from, and the one that it is patched into."""


@dataclass(frozen=True)
class Read:
    """The last token of a sentence, with its explanation and what can be checked."""

    text: str
    """The sentence."""
    expected: tuple[str, ...]
    """The target's three likeliest next tokens."""
    explanation: str
    """The verbalizer's text about the residual of the last token."""
    right: dict[str, bool]
    """Line to whether it agrees with the sentence and the target; the subject is not judged."""


def read_sentences(model: TransformersModel, nla: NLA, count: int = len(SENTENCES)) -> list[Read]:
    """Read the last token of `count` sentences.

    Args:
        model: The target.
        nla: Its NLA.
        count: How many of `SENTENCES`.
    """
    chosen = SENTENCES[:count]
    spans = nla.positions(model, list(chosen))
    thoughts, tops = [], []
    for sentence, span in zip(chosen, spans, strict=True):
        with model.trace(sentence):
            residual = nla.layer(model).output[0, -1]
            thoughts.append(
                nla.explain(residual, tokens=span.tokens[-1], positions=len(span.ids) - 1)
            )
            logits = model.lm_head.output[0, -1].detach().save()
        tops.append(_expected(model, logits))
    nla.resolve()
    return [
        Read(text, top, str(thought.text), _right(text, top, str(thought.text)))
        for text, top, thought in zip(chosen, tops, thoughts, strict=True)
    ]


def patch_fact(model: TransformersModel, nla: NLA, layer: int = 10) -> Sweep:
    """Patch France into a prompt on Italy, at the country's position, and explain the last one.

    Args:
        model: The target.
        nla: Its NLA.
        layer: The block to patch.
    """
    from ..experiments import logit_difference, patch

    spans = nla.positions(model, list(FACT))
    (country,) = [
        i for i, pair in enumerate(zip(spans[0].ids, spans[1].ids, strict=True)) if len({*pair}) > 1
    ]
    metric = logit_difference(" Paris", " Rome")
    return patch(model, nla, *FACT, layers=layer, positions=country, metric=metric)


def _right(text: str, expected: tuple[str, ...], said: str) -> dict[str, bool]:
    known, slots = truth("", text, expected), parse(said)
    assert known is not None  # The sentences are long enough.
    told = slots or Slots("", "", (), ())
    return {
        "content": told.content.lower() in text.lower().split(),
        "last": told.last[:1] == known.last[:1],
        "next": told.next[:1] != () and told.next[0] in known.next,
    }


def _expected(model: TransformersModel, logits: Float[Tensor, " vocab"]) -> tuple[str, ...]:
    tokenizer: Any = model.tokenizer
    ids = logits.float().topk(3).indices.tolist()
    return tuple(spelled(tokenizer.decode([each])) for each in ids)
