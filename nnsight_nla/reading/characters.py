"""Which tokens are one character together: most Chinese characters and emoji have several tokens.

A token that is a part of a character's bytes decodes to U+FFFD by itself. The tokens from it on are
decoded together until the bytes are whole. Tokens that share what a reader sees as one character
belong together as well: a flag, a family, a skin tone, a letter and its accents (the extended
grapheme clusters of Unicode).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import regex

_BROKEN = "\ufffd"
_JOINERS = "\u200c\u200d"
_CLUSTER = regex.compile(r"\X")
_LONGEST, _MOST = 8, 64
"""The most tokens of the bytes of one character, and of tokens that are one chip together."""


def whole(tokenizer: Any, ids: Sequence[int], tokens: Sequence[str]) -> list[str | None]:
    """Return for each token the characters that it begins, where it is not text by itself.

    Args:
        tokenizer: The target's.
        ids: The text's token ids.
        tokens: Each decoded by itself.

    Returns:
        ``None`` for a token that is text by itself; for others, the text of the group at its first
        token and ``""`` at those after it.
    """
    units = list(_units(tokenizer, ids, tokens))
    begins = {each.start() for each in _CLUSTER.finditer("".join(text for *_, text in units))}
    groups: list[tuple[int, int, str]] = []
    at = 0
    for start, end, text in units:
        first, _, before = groups[-1] if groups else (start, 0, "")
        if text and at not in begins and _seen(before, text) and end - first <= _MOST:
            groups[-1] = first, end, before + text
        else:
            groups.append((start, end, text))
        at += len(text)
    found: list[str | None] = [None] * len(ids)
    for start, end, text in groups:
        if end - start > 1:
            found[start:end] = [text, *[""] * (end - start - 1)]
    return found


def _units(
    tokenizer: Any, ids: Sequence[int], tokens: Sequence[str]
) -> Iterator[tuple[int, int, str]]:
    """Yield the tokens whose bytes are whole together: the first, the end, and their text."""
    start = 0
    while start < len(ids):
        end, text = _unit(tokenizer, ids, tokens, start)
        yield start, end, text
        start = end


def _unit(tokenizer: Any, ids: Sequence[int], tokens: Sequence[str], start: int) -> tuple[int, str]:
    """Return where the characters that begin at token `start` end, and their text."""
    if _BROKEN in tokens[start]:
        for end in range(start + 2, min(start + _LONGEST, len(ids)) + 1):
            if _BROKEN not in tokens[end - 1]:  # Ordinary text: the bytes before it are no text.
                break
            text = tokenizer.decode(list(ids[start:end]))
            if _BROKEN not in text:
                return end, text
    return start + 1, tokens[start]


def _seen(before: str, text: str) -> bool:
    """Return whether a reader sees that `text` continues what is before it.

    A joiner after anything but a sign is not seen, and has a chip that says so; a line break after
    a carriage return ends a line.
    """
    if text[0] not in _JOINERS:
        return text[0] != "\n"
    sign = before.rstrip(f"{_JOINERS}\ufe0f")[-1:]
    return sign != "" and unicodedata.category(sign)[0] == "S"
