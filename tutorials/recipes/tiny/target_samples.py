"""The training samples of the target: token ids, and the state of the text at each token.

Most samples are documents, some of them in chat form. A tenth are chats in which a user asks for
the explanation of a text: the target already knows the language of explanations when the verbalizer
is fine-tuned from it, as Qwen3-8B does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nnsight_nla.checkpoint.reply import wrap
from nnsight_nla.tiny.documents import Document, Truth, join, sample
from nnsight_nla.tiny.explanations import UNSURE, explain
from nnsight_nla.tiny.facts import NEUTRAL, RELATIONS, SUBJECTS, TONES

from .train_tokenizer import DESCRIBE, chat_prompt, encode_words

SUBJECT_LABELS = (*SUBJECTS, None)
TONE_LABELS = (*TONES, NEUTRAL)
STAGE_LABELS = ("opening", "intro", "unknown", *RELATIONS)
IGNORED = -100
"""The label of a token on which no loss is taken."""

# In a sample that asks for an explanation, the explanation's last tokens have the state of the
# whole text as their label.
_LAST_TOKENS = 20


@dataclass(frozen=True)
class Sample:
    """One training sample of the target."""

    ids: list[int]
    """The token ids."""
    state: tuple[list[int], list[int], list[int]]
    """The labels of subject, tone and stage at each token; `IGNORED` where there is none."""


def draw(tokenizer: Any, rng: random.Random) -> Sample:
    """Draw one sample: a document, or a chat that asks for an explanation of one."""
    document = sample(rng, chat=0.15)
    if rng.random() < 0.10:
        return _explanation_sample(tokenizer, rng, document)
    prefix = "" if document.question is None else chat_prompt(tokenizer, document.question)
    before = tokenizer.encode(prefix, add_special_tokens=False)
    ids = [*before, *encode_words(tokenizer, document.words), tokenizer.eos_token_id]
    labels = [_labels(word.truth) for word in document.words]
    padding = [IGNORED] * len(before)
    subject, tone, stage = (
        [*padding, *(label[slot] for label in labels), IGNORED] for slot in range(3)
    )
    return Sample(ids, (subject, tone, stage))


def batches(
    samples: Sequence[Sample], batch_size: int, steps: int, rng: random.Random
) -> Iterator[list[Sample]]:
    """Yield exactly `steps` batches of samples of similar length, in random order."""
    window = batch_size * 16
    found: list[list[Sample]] = []
    for start in range(0, len(samples), window):
        similar = sorted(samples[start : start + window], key=lambda sample: len(sample.ids))
        found += [similar[i : i + batch_size] for i in range(0, len(similar), batch_size)]
    rng.shuffle(found)
    yield from found[:steps]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Pad rows with `value` on the right, to ``[rows, longest]``."""
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _explanation_sample(tokenizer: Any, rng: random.Random, document: Document) -> Sample:
    """A user asks for the explanation of a text that breaks off."""
    last = rng.randrange(8, len(document.words) - 1)
    word, following = document.words[last], document.words[last + 1]
    next_word = following.text if rng.random() < 0.8 else UNSURE
    text = join(word.text for word in document.words[: last + 1])
    reply = wrap(explain(word.truth, word.text, next_word))
    prompt = chat_prompt(tokenizer, DESCRIBE + text)
    ids = tokenizer.encode(prompt + reply, add_special_tokens=False)
    ids.append(tokenizer.eos_token_id)
    subject, tone, _ = _labels(word.truth)
    ignored = [IGNORED] * (len(ids) - _LAST_TOKENS)
    # No label for the stage: the reply itself states it in words.
    return Sample(
        ids,
        (
            [*ignored, *[subject] * _LAST_TOKENS],
            [*ignored, *[tone] * _LAST_TOKENS],
            [IGNORED] * len(ids),
        ),
    )


def _labels(truth: Truth) -> tuple[int, int, int]:
    return (
        SUBJECT_LABELS.index(truth.subject),
        TONE_LABELS.index(truth.tone),
        STAGE_LABELS.index(truth.stage),
    )
