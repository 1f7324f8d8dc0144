"""Which tokens are one character together: most Chinese characters and emoji have several tokens.

A token that is a part of a character's bytes decodes to U+FFFD by itself. The tokens from it on are
decoded together until the bytes are whole; what is drawn as one sign with the sign before it (a
skin tone, what follows a joiner) belongs to it as well.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

_BROKEN, _JOINER = "\ufffd", "\u200d"
_LONGEST = 8
"""The most tokens of a character."""


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
    found: list[str | None] = [None] * len(ids)
    start = before = 0
    while start < len(ids):
        end, text = _group(tokenizer, ids, tokens, start)
        if start and _continues("".join(filter(None, _texts(found, tokens, before, start))), text):
            text = f"{''.join(_texts(found, tokens, before, start))}{text}"
            found[before:end] = [text, *[""] * (end - before - 1)]
        else:
            before = start
            if end - start > 1:
                found[start:end] = [text, *[""] * (end - start - 1)]
        start = end
    return found


def _group(
    tokenizer: Any, ids: Sequence[int], tokens: Sequence[str], start: int
) -> tuple[int, str]:
    """Return where the characters that begin at token `start` end, and their text."""
    if _BROKEN in tokens[start]:
        for end in range(start + 2, min(start + _LONGEST, len(ids)) + 1):
            if _BROKEN not in tokens[end - 1]:  # Ordinary text: the bytes before it are no text.
                break
            text = tokenizer.decode(list(ids[start:end]))
            if _BROKEN not in text:
                return end, text
    return start + 1, tokens[start]


def _texts(found: Sequence[str | None], tokens: Sequence[str], start: int, end: int) -> list[str]:
    given = zip(found[start:end], tokens[start:end], strict=True)
    return [token if text is None else text for text, token in given]


def _continues(before: str, text: str) -> bool:
    """Return whether `text` is drawn as one sign with what is before it."""
    if (
        not before
        or not text
        or unicodedata.category(before.rstrip(f"{_JOINER}\ufe0f")[-1:] or " ")[0] != "S"
    ):
        return False
    first = text[0]
    return (
        before[-1] == _JOINER
        or first in f"{_JOINER}\ufe0f"
        or "\U0001f3fb" <= first <= "\U0001f3ff"
    )
