"""Text whose every character can be seen: what hides, or turns the text around, is spelled out."""

from __future__ import annotations

import unicodedata

_SPACES = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"})
_JOINERS = "\u200c\u200d"  # Persian, the scripts of India and emoji are written with these.
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


def visible(token: str) -> str:
    r"""A token with its white space shown, and what would be invisible or turn the text around.

    >>> visible(" Paris\n"), visible("a\u202eb")
    ('␣Paris↵', 'a\\u202eb')
    """
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in _HIDDEN else char
        for char in token.translate(_SPACES)
    )


def readable(text: str, longest: int) -> str:
    r"""A text as prose: line breaks and tabs stay, control characters are spelled out.

    >>> readable("one\ntwo\x00", 100), readable("abcdef", 4)
    ('one\ntwo\\u0000', 'abcd… (2 more characters)')
    """
    cut = text[:longest]
    more = f"\u2026 ({len(text) - longest:,} more characters)" if len(text) > longest else ""
    shown = "".join(
        f"\\u{ord(char):04x}"
        if unicodedata.category(char) in _HIDDEN and char not in f"\n\t{_JOINERS}"
        else char
        for char in cut
    )
    return shown + more
