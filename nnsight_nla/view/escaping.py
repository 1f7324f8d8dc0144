"""Escape markup, and invisible and bidirectional characters."""

from __future__ import annotations

import unicodedata
from html import escape

_SPACES = str.maketrans({" ": "\u2423", "\n": "\u21b5", "\t": "\u21e5"})
_JOINERS = "\u200c\u200d"  # Persian, the scripts of India and emoji are written with these.
_HIDDEN = ("Cc", "Cf", "Co", "Cs", "Zl", "Zp")


class Html(str):
    """Markup that this package made; every other string is text, and escaped where it is shown."""

    __slots__ = ()


def html(value: object) -> Html:
    """Return a value as HTML: any but `Html` is escaped, whoever it came from.

    >>> html("<b>"), html(Html("<b>")), html(None)
    ('&lt;b&gt;', '<b>', '')
    """
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(str(value)))


def visible(token: str, *, joined: bool = False) -> str:
    r"""Return a token with signs for its white space, and invisible characters escaped.

    Args:
        token: The token, or several that are one character together.
        joined: Whether to keep the joiners that make one emoji of several.

    >>> visible(" Paris\n"), visible("a\u202eb")
    ('␣Paris↵', 'a\\u202eb')
    """
    return _escaped(token.translate(_SPACES), keep=_JOINERS if joined else "")


def readable(text: str, longest: int) -> str:
    r"""Return a text as prose: line breaks and tabs are kept, invisible characters are escaped.

    >>> readable("one\ntwo\x00", 100), readable("abcdef", 4)
    ('one\ntwo\\u0000', 'abcd… (2 more characters)')
    """
    more = f"\u2026 ({len(text) - longest:,} more characters)" if len(text) > longest else ""
    return _escaped(text[:longest], keep=f"\n\t{_JOINERS}") + more


def _escaped(text: str, keep: str = "") -> str:
    return "".join(
        f"\\u{ord(char):04x}"
        if unicodedata.category(char) in _HIDDEN and char not in keep
        else char
        for char in text
    )
