"""Find the quotes, names and numbers of an explanation, and where in the document they occur."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

from .rows import GroundedRow

Place = Literal["so far", "later", "nowhere"]
"""In the text up to the vector's token, in the rest of the document, or in neither."""
_QUOTE = re.compile(
    '"([^"\n]{2,200})"|\u201c([^\u201d\n]{2,200})\u201d|\u00ab([^\u00bb\n]{2,200})\u00bb'
    "|(?<!\\w)'([^'\n]{2,200})'(?!\\w)|`([^`\n]{2,200})`"
)
# Capital letters of any script: word characters that are no digits, underscores or lower case.
_CAPITAL = "(?:[A-Z]|(?=[^\\W\\d_a-z])(?=[\u00c0-\u00de\u0391-\u03a9\u0410-\u042f])\\w)"
# Capitalised words in a row, where the first does not begin a sentence or a line.
_NAME = re.compile(rf"(?<=[\w,;:)] ){_CAPITAL}[\w'-]+(?: {_CAPITAL}[\w'-]*)*")
_NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")


def mentions(text: str) -> list[str]:
    """Return what an explanation quotes, and the names and numbers in it, each once.

    >>> mentions('About bees, as "they fly home"; then Anna Karenina pays 12 roubles.')
    ['they fly home', 'Anna Karenina', '12']
    """
    found = [next(filter(None, groups)) for groups in _QUOTE.findall(text)]
    rest = _QUOTE.sub(" ", text)
    found += [name for name in _NAME.findall(rest) if not name.split()[0].isupper()]
    found += _NUMBER.findall(rest)
    return [each for each in dict.fromkeys(found) if _plain(each)]


def place(mention: str, row: GroundedRow) -> Place:
    """Return where a mention occurs, whatever its case, white space and final punctuation.

    >>> row = GroundedRow("a", "The bees fly home", " in the evening.")
    >>> [place(each, row) for each in ("fly  Home.", "evening", "Anna", "bee")]
    ['so far', 'later', 'nowhere', 'nowhere']
    """
    if _has(row.text, mention):
        return "so far"
    return "later" if _has(row.text + row.rest, mention) else "nowhere"


def _has(text: str, mention: str) -> bool:
    """Return whether `text` contains `mention` as whole words."""
    found, plain = _plain(mention), _plain(text)
    if not found or found not in plain:
        return False
    return re.search(rf"(?<!\w){re.escape(found)}(?!\w)", plain) is not None


@lru_cache(maxsize=64)  # A document is compared with each mention of its explanations.
def _plain(text: str) -> str:
    text = text.casefold().translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"'})
    return " ".join(text.split()).strip(".,;:!?\u2026\"'` ")
