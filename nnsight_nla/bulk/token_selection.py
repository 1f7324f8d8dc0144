"""Which tokens of a document are read.

* ``all``, ``last``, ``every:10`` (tokens 9, 19, 29, ...: after every tenth one was read)
* ``random:5``: five of them, drawn by the document's name, so the same in every run
* ``regex:PATTERN``: the token in which each match ends, so the residual has seen all of it
* a token class, which is a ready regular expression: ``class:word``, ``class:number``, ...

>>> text = Located("Paris, 1999.", (0, 1, 2, 3), ("Paris", ",", " 1999", "."), (5, 6, 11, 12))
>>> parse("class:number").choose(text, "doc 1"), parse("every:2").choose(text, "doc 1")
([2], [1, 3])
"""

from __future__ import annotations

import hashlib
import itertools
import random
import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import NLAError
from ..models import hosts

CLASSES = {
    "word": r"\w+(?:['’]\w+)*",
    "capital": r"\b[^\W\d_a-z]\w*",
    "number": r"\d+(?:[.,]\d+)*",
    "punctuation": r"[^\w\s]+",
    "sentence": r"[.!?…]+(?=[\s\"'”’)\]]|$)",
    "newline": r"\n+",
}
"""Token classes by name, as the regular expressions that they are."""


@dataclass(frozen=True)
class Located:
    """A document's tokens and where in its text each ends."""

    text: str
    """The text."""
    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    tokens: tuple[str, ...]
    """Each decoded by itself."""
    ends: tuple[int, ...]
    """For each token, how many characters of the text have been read with it; never falls."""


Positions = Callable[[Located, str], Sequence[int]]
"""Positions in a document, given its name, in order."""


@dataclass(frozen=True)
class Places:
    """A choice of positions."""

    spec: str
    """As it was written."""
    skip: int
    """The first so many positions are never chosen."""
    seed: int
    """Of ``random:N``."""
    choose: Callable[[Located, str], list[int]]
    """The positions in a document, given its name, in order."""


def parse(spec: str | int, *, skip: int = 0, seed: int = 0) -> Places:
    """Read a choice of positions.

    Args:
        spec: One of the forms above; a whole number N is ``every:N``.
        skip: The first so many positions are never chosen.
        seed: Of ``random:N``.

    Raises:
        NLAError: It is none of them, or the regular expression is not one.
    """
    written = f"every:{spec}" if isinstance(spec, int) else spec
    kind, _, value = written.partition(":")

    def made(positions: Positions) -> Places:
        def choose(text: Located, name: str) -> list[int]:
            return [position for position in positions(text, name) if position >= skip]

        return Places(written, skip, seed, choose)

    if written == "all":
        return made(lambda text, _: range(len(text.ids)))
    if written == "last":
        return made(lambda text, _: range(len(text.ids))[-1:])
    if kind in ("every", "random") and value.isdecimal() and int(value) > 0:
        count = int(value)
        if kind == "every":
            return made(lambda text, _: range(count - 1, len(text.ids), count))
        return made(_random(skip, seed, count))
    if kind == "class" and value in CLASSES:
        return made(_matches(re.compile(CLASSES[value])))
    if kind == "regex" and value:
        try:
            return made(_matches(re.compile(value)))
        except re.error as error:
            raise NLAError(f"positions {written!r}: no regular expression: {error}.") from error
    raise NLAError(
        f"positions {written!r}: expected all, last, every:N, random:N, regex:PATTERN, or "
        f"class:NAME with one of {', '.join(CLASSES)}."
    )


def locate(model: Any, text: str) -> Located:
    """Tokenize a document as `model` will, and find where in it each token ends."""
    (span,) = hosts.positions(model, text)
    tokenizer = model.tokenizer
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, return_offsets_mapping=True)
        if tuple(again["input_ids"]) == span.ids:
            ends, last = [], 0
            for _, end in again["offset_mapping"]:
                last = max(last, end)  # A special token lies nowhere: (0, 0).
                ends.append(last)
            return Located(text, span.ids, span.tokens, tuple(ends))
    joined = "".join(span.tokens)
    ends = tuple(itertools.accumulate(map(len, span.tokens)))
    return Located(joined, span.ids, span.tokens, ends)


def _random(skip: int, seed: int, count: int) -> Positions:
    def positions(text: Located, name: str) -> list[int]:
        digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
        every = range(skip, len(text.ids))
        rng = random.Random(int.from_bytes(digest, "little"))
        return sorted(rng.sample(every, min(count, len(every))))

    return positions


def _matches(pattern: re.Pattern[str]) -> Positions:
    def positions(text: Located, _: str) -> list[int]:
        ends = (match.end() for match in pattern.finditer(text.text) if match.group())
        found = {bisect_left(text.ends, end) for end in ends}
        return sorted(position for position in found if position < len(text.ids))

    return positions
