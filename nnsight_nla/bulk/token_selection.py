"""Select the tokens of a document whose residuals are read (``positions=``).

* ``all``, ``last``, ``every:10`` (tokens 9, 19, 29, ...: every tenth one)
* ``random:5``: five tokens, seeded with the document's name, so they are the same in every run
* ``regex:PATTERN``: the token in which each match ends, so the residual has seen the whole match
* a token class, which is a predefined regular expression: ``class:word``, ``class:number``, ...

>>> text = TokenizedText("Paris, 1999.", (0, 1, 2, 3), ("Paris", ",", " 1999", "."), (5, 6, 11, 12))
>>> parse_positions("class:number").choose(text, "doc 1")
[2]
>>> parse_positions("every:2").choose(text, "doc 1")
[1, 3]
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import NLAError, shown
from ..models import hosts

if TYPE_CHECKING:
    from nnsight import TransformersModel

CLASSES = {
    "word": r"\w+(?:['’]\w+)*",
    "capital": r"\b[^\W\d_a-z]\w*",
    "number": r"\d+(?:[.,]\d+)*",
    "punctuation": r"[^\w\s]+",
    "sentence": r"[.!?…]+(?=[\s\"'”’)\]]|$)",
    "newline": r"\n+",
}
"""The regular expression of each token class."""


@dataclass(frozen=True)
class TokenizedText:
    """A document's tokens, and where each of them ends in the text."""

    text: str
    """The text."""
    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    tokens: tuple[str, ...]
    """The decoded tokens."""
    ends: tuple[int, ...]
    """For each token, how many characters of the text end with it; never decreases."""


_Chooser = Callable[[TokenizedText, str], Sequence[int]]


@dataclass(frozen=True)
class TokenSelection:
    """A rule that selects positions in a document."""

    spec: str
    """The rule, in one of the forms above."""
    skip: int
    """Positions below this are never selected."""
    choose: Callable[[TokenizedText, str], list[int]]
    """Returns the positions in a document of a given name, in order."""


def parse_positions(spec: str | int, *, skip: int = 0, seed: int = 0) -> TokenSelection:
    """Parse a rule that selects positions.

    Args:
        spec: One of the forms above; an integer N means ``every:N``.
        skip: Positions below this are never selected.
        seed: The seed of ``random:N``.

    Raises:
        NLAError: It has none of the forms, or the regular expression is not valid.
    """
    written = f"every:{spec}" if isinstance(spec, int) else spec
    kind, _, value = written.partition(":")

    def selection(chooser: _Chooser) -> TokenSelection:
        def choose(text: TokenizedText, name: str) -> list[int]:
            return [position for position in chooser(text, name) if position >= skip]

        return TokenSelection(written, skip, choose)

    if written == "all":
        return selection(lambda text, _: range(len(text.ids)))
    if written == "last":
        return selection(lambda text, _: range(len(text.ids))[-1:])
    if kind in ("every", "random") and value.isdecimal() and int(value) > 0:
        count = int(value)
        if kind == "every":
            return selection(lambda text, _: range(count - 1, len(text.ids), count))
        return selection(_random(skip, seed, count))
    if kind == "class" and value in CLASSES:
        return selection(_matches(re.compile(CLASSES[value])))
    if kind == "regex" and value:
        try:
            return selection(_matches(re.compile(value)))
        except re.error as error:
            raise NLAError(
                f"positions={shown(written)}: the regular expression is not valid: {error}."
            ) from error
    raise NLAError(
        f"positions={shown(written)}: expected all, last, every:N, random:N, regex:PATTERN, or "
        f"class:NAME with one of {', '.join(CLASSES)}."
    )


def tokenize(model: TransformersModel, text: str) -> TokenizedText:
    """Tokenize a document as `model` will, and find where each token ends in it."""
    (span,) = hosts.positions(model, text)
    tokenizer = model.tokenizer
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, return_offsets_mapping=True)
        if tuple(again["input_ids"]) == span.ids:
            ends, last = [], 0
            for _, end in again["offset_mapping"]:
                last = max(last, end)  # A special token has the offsets (0, 0).
                ends.append(last)
            return TokenizedText(text, span.ids, span.tokens, tuple(ends))
    joined = "".join(span.tokens)
    ends = tuple(itertools.accumulate(map(len, span.tokens)))
    return TokenizedText(joined, span.ids, span.tokens, ends)


def _random(skip: int, seed: int, count: int) -> _Chooser:
    def positions(text: TokenizedText, name: str) -> list[int]:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        every = range(skip, len(text.ids))
        rng = random.Random(int.from_bytes(digest, "little"))
        return sorted(rng.sample(every, min(count, len(every))))

    return positions


def _matches(pattern: re.Pattern[str]) -> _Chooser:
    def positions(text: TokenizedText, _: str) -> list[int]:
        ends = (match.end() for match in pattern.finditer(text.text) if match.group())
        found = {bisect_left(text.ends, end) for end in ends}
        return sorted(position for position in found if position < len(text.ids))

    return positions
