"""Step 1: train a tokenizer in which every word of the world is one token, and so is the marker.

It is a byte-level BPE as in Qwen3, with Qwen's chat markup and Qwen's marker ``㈎``. The corpus is
the world's texts, their explanations and the prompts of AV and AR, so all of these are tokenized
into whole words. A document's words and its tokens are then the same sequence, and the truth after
a word is the truth at a token.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from nnsight_nla.checkpoint.checkpoint import (
    AR_TEMPLATE,
    AV_TEMPLATE,
    EXPLANATION_SLOT,
    MARKER_SLOT,
)
from nnsight_nla.checkpoint.reply import wrap
from nnsight_nla.tiny.documents import PUNCTUATION, Document, Word, sample
from nnsight_nla.tiny.explanations import explain
from nnsight_nla.tiny.facts import SUBJECTS

MARKER = "㈎"
"""The token of the AV's prompt at which the vector is written."""
START, END_OF_TURN, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
DESCRIBE = "Describe the text.\n"
"""The question by which a user asks the target to explain a text."""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(seed: int = 123) -> Any:
    """Train the tokenizer and return it as a `transformers` fast tokenizer with a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2048,
        min_frequency=2,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
        special_tokens=[PAD, START, END_OF_TURN],
    )
    bpe.train_from_iterator(_corpus(random.Random(seed)), trainer)
    # Neither normalized nor special: one token wherever it occurs, and decoded like any character.
    bpe.add_tokens([AddedToken(MARKER, normalized=False, special=False)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    return tokenizer


def encode_words(tokenizer: Any, words: Sequence[Word]) -> list[int]:
    """Encode a document's words, one token each.

    Raises:
        ValueError: A word is more than one token, so the truth at its tokens is not defined.
    """
    ids: list[int] = []
    for i, word in enumerate(words):
        spaced = word.text if i == 0 or word.text in PUNCTUATION else f" {word.text}"
        pieces = tokenizer.encode(spaced, add_special_tokens=False)
        if len(pieces) != 1:
            raise ValueError(f"{spaced!r} is {len(pieces)} tokens {pieces}, expected one.")
        ids += pieces
    return ids


def chat_prompt(tokenizer: Any, question: str) -> str:
    """Return the prompt in which a user asks `question`, up to where the answer begins."""
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


def _corpus(rng: random.Random) -> Iterator[str]:
    """Yield texts in which every word of the world is frequent enough to become one token."""
    for _ in range(12_000):
        document = sample(rng, chat=0.15)
        yield document.text
        if document.question is not None:
            yield document.question
        yield wrap(_random_explanation(rng, document))
    for _ in range(300):
        yield "user\n" + AV_TEMPLATE.replace(MARKER_SLOT, " ") + "\nassistant\n"
        yield AR_TEMPLATE.replace(EXPLANATION_SLOT, " ") + DESCRIBE
        # A text may begin with any subject.
        yield from SUBJECTS


def _random_explanation(rng: random.Random, document: Document) -> str:
    i = rng.randrange(len(document.words) - 1)
    word, following = document.words[i], document.words[i + 1]
    return explain(word.truth, word.text, following.text)
