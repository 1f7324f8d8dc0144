"""Find what an explanation says comes next, and compare it with what the target says."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .rows import GroundedRow

_PUNCTUATION = {".": "period", ",": "comma", "!": "bang", "?": "question"}
_UNSURE = ("unsure", "unknown", "none")
SaysNext = Callable[[str], list[str]]
"""An explanation to the continuations that it names, the likeliest first."""
# "Next: collect | gather", or "Next: French." at the end of a line.
_LINE = re.compile(r"\bnext(?: tokens?| words?)?\s*:\s*([^\n]+)", re.IGNORECASE)
_ABOUT = re.compile(r"\b(?:next|expect|predict|continu|follow|likely to|anticipat)", re.IGNORECASE)
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n")
# Of bounded length, as each opening mark of a text may have no end.
_QUOTED = re.compile(
    '"([^"\n]{1,200})"|\u201c([^\u201d\n]{1,200})\u201d'
    "|(?<!\\w)'([^'\n]{1,200})'(?!\\w)|`([^`\n]{1,200})`"
)


def says_next(text: str) -> list[str]:
    r"""Return what an explanation says comes next; empty if it does not say so.

    It reads a line ``Next: a | b | c``, and what is quoted in a sentence on what is expected, is
    predicted, continues or follows.

    >>> says_next("Last: the\nNext: hive | flowers | field")
    ['hive', 'flowers', 'field']
    >>> says_next('A list of cities. The next word is likely "Paris" or "Rome".')
    ['Paris', 'Rome']
    >>> says_next("A text on bees.")
    []
    """
    if match := _LINE.search(text):
        parts = match.group(1).split(" | ")
        named = [each.strip().rstrip(".") or each.strip() for each in parts]
        quoted = _quoted(match.group(1)) if len(parts) == 1 and _is_quoted(parts[0]) else []
        return quoted or [each for each in named if each and each.casefold() not in _UNSURE]
    found = [
        quote
        for sentence in _SENTENCES.split(text)
        if _ABOUT.search(sentence)
        for quote in _quoted(sentence)
    ]
    return list(dict.fromkeys(found))


def agrees(said: Sequence[str], tokens: Sequence[str]) -> bool:
    """Return whether the first continuation that is named is among the target's likeliest tokens.

    A word agrees with a token that begins it, because a token may be a part of a word. A token
    that has no letters is compared as explanations of the embedded pairs spell it.
    """
    return bool(said) and any(_agree(said[0].casefold(), token) for token in tokens)


def probability(said: Sequence[str], row: GroundedRow) -> float | None:
    """Return the target's probability of what is named first; ``None`` if that is unknown."""
    if not said or not row.probabilities:
        return None
    first = said[0].casefold()
    pairs = zip(row.next_tokens, row.probabilities, strict=False)
    return sum(p for token, p in pairs if _agree(first, token))


def spelled(token: str) -> str:
    """Spell a token in one line: without its space, and with a name if nothing is left."""
    word = token.strip()
    if "<|" in word:
        return "(end)"
    if word == "|":
        return "(bar)"
    return word or ("(line)" if "\n" in token else "(space)")


def name_of(word: str) -> str:
    """Return the name of a punctuation mark; other words are their own."""
    return _PUNCTUATION.get(word, word)


def _agree(said: str, token: str) -> bool:
    word = spelled(token).casefold()
    if said in (word, name_of(word), "end" if word == "(end)" else word):
        return True
    return len(word) > 1 and word.isalpha() and said.split(" ")[0].startswith(word)


def _quoted(text: str) -> list[str]:
    found = [next(filter(None, groups)).strip() for groups in _QUOTED.findall(text)]
    return [each for each in found if each]


def _is_quoted(text: str) -> bool:
    return text.strip()[:1] in "\"'`\u201c"
