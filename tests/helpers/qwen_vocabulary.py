"""The real Qwen vocabulary as a fast tokenizer, from the BPE ranks that the dashscope wheel holds.

The wheel is installed but never imported. Its ranks list every token with its number; a BPE also
wants the pair that each was merged from, which is what the token splits into under the tokens of
lower rank. The chat markup is Qwen3's for what the tests need: user messages, no system prompt, a
generation prompt.
"""

from __future__ import annotations

import base64
from importlib import metadata
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT = (
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer; some seconds."""
    ranks = _ranks()
    merges = [_halves(token, rank, ranks) for token, rank in ranks.items() if len(token) > 1]
    spelled = _spelling()
    built = Tokenizer(
        models.BPE(
            vocab={_spell(token, spelled): rank for token, rank in ranks.items()},
            merges=[(_spell(left, spelled), _spell(right, spelled)) for left, right in merges],
        )
    )
    built.normalizer = normalizers.NFC()
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens([AddedToken(each, special=True) for each in SPECIAL])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=built, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = CHAT
    return fast


def _ranks() -> dict[bytes, int]:
    """Every token's bytes and number, in order."""
    file = metadata.distribution("dashscope").locate_file("dashscope/resources/qwen.tiktoken")
    lines = Path(str(file)).read_bytes().splitlines()
    pairs = (line.split() for line in lines if line)
    return {base64.b64decode(token): int(rank) for token, rank in pairs}


def _halves(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two tokens that `token` is merged from: merge by rank until two are left."""
    splits = [
        (token[:i], token[i:])
        for i in range(1, len(token))
        if ranks.get(token[:i], rank) < rank and ranks.get(token[i:], rank) < rank
    ]
    if len(splits) == 1:
        return splits[0]
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        best = min(range(len(parts) - 1), key=lambda i: ranks.get(parts[i] + parts[i + 1], rank))
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts[0], parts[1]


def _spelling() -> dict[int, str]:
    """Byte to the printable character that a byte-level BPE writes it as (GPT-2's table)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    return table | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _spell(token: bytes, spelled: dict[int, str]) -> str:
    return token.decode("latin-1").translate(spelled)
