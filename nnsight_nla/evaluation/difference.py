"""The word-level difference between two explanations, and nothing more: no synonyms, no meaning.

>>> difference("About Rome, in Italy.", "About Paris, in France.").removed
('Rome', 'Italy')
>>> print(difference("About Rome, in Italy.", "About Paris, in France."))
About [-Rome-] {+Paris+}, in [-Italy-] {+France+}.
>>> difference("About Rome.", "About Rome.").change
0.0
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from ..view.escaping import Html, html, readable

_WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_LONGEST = 4000
_NARROWEST = 20
_SIGNS = {"same": "{}", "removed": "[-{}-]", "added": "{{+{}+}}"}
"""As in ``git diff --word-diff``."""
_MARKS = {
    "same": "{}",
    "removed": '<del style="background:#f8514933">{}</del>',
    "added": '<ins style="background:#3fb95033;text-decoration:none">{}</ins>',
}

Kind = Literal["same", "removed", "added"]
Span = tuple[Kind, str]
"""A run of words, and whether it is in both texts, only before, or only after."""


@dataclass(frozen=True)
class Difference:
    """One explanation before an intervention and one after it."""

    before: str | None
    """The text before; ``None`` if there is none."""
    after: str | None
    """The text after."""
    removed: tuple[str, ...]
    """The runs of words that are only before."""
    added: tuple[str, ...]
    """The runs of words that are only after."""
    change: float | None
    """The share of words that differ, 0 to 1 (1 − `difflib`'s ratio, over words)."""
    cosine: float | None
    """Between the two vectors."""
    text_distance: float | None
    """1 − the cosine between the reconstructor's vectors of the two texts; ``None`` without one."""
    effect: float | None
    """The effect on the output, where a `Sweep` measured one."""
    error: str | None
    """Why a value is missing."""

    @property
    def spans(self) -> tuple[Span, ...]:
        """The diff in reading order; a removed run comes before the run that was added for it."""
        return tuple((kind, text) for kind, text, _ in _spans(self.before or "", self.after or ""))

    def to_html(self) -> Html:
        """Return the diff as HTML: removed words struck, added words marked, all text escaped."""
        if self.before is None or self.after is None:
            return Html(f"<em>{html(self.error or 'no text')}</em>")
        shown = ""
        for kind, text, gap in self._shown():
            shown += gap.replace("\n", "<br>")
            shown += _MARKS[kind].format(html(text).replace("\n", "<br>"))
        return Html(shown)

    _repr_html_ = to_html

    def to_text(self, width: int | None = None) -> str:
        """Return the diff as text for a terminal: ``[-removed-]`` and ``{+added+}``.

        Args:
            width: The columns of a line; those of the terminal unless given.
        """
        if self.before is None or self.after is None:
            return self.error or "no text"
        marked = "".join(
            gap + "\n".join(_SIGNS[kind].format(line) if line else "" for line in text.split("\n"))
            for kind, text, gap in self._shown()
        )
        width = shutil.get_terminal_size().columns if width is None else width
        return "\n".join(_laid_out(marked, max(width, _NARROWEST)))

    __str__ = to_text

    def _shown(self) -> Iterator[tuple[Kind, str, str]]:
        """Yield the spans as a reader sees them: the kind, the text, and the gap before it."""
        last = None
        for kind, text, gap in _spans(self.before or "", self.after or ""):
            if (last, kind) == ("removed", "added"):
                gap = gap or " "
            yield kind, readable(text, _LONGEST), "\n" if "\n" in gap else " " if gap else ""
            last = kind


def difference(
    before: str | None,
    after: str | None,
    *,
    cosine: float | None = None,
    text_distance: float | None = None,
    effect: float | None = None,
    error: str | None = None,
) -> Difference:
    """Compare two texts word by word; the other values are stored with the result.

    Args:
        before: The text before; ``None`` if there is none.
        after: The text after.
        cosine: Between the two vectors.
        text_distance: Between the two texts.
        effect: On the output.
        error: Why a value is missing.
    """
    known = (cosine, text_distance, effect, error)
    if before is None or after is None:
        return Difference(before, after, (), (), None, *known)
    spans = _spans(before, after)
    removed = tuple(text for kind, text, _ in spans if kind == "removed")
    added = tuple(text for kind, text, _ in spans if kind == "added")
    words = [_WORDS.findall(text) for text in (before, after)]
    change = 1 - SequenceMatcher(None, *words, autojunk=False).ratio()
    return Difference(before, after, removed, added, change, *known)


def _laid_out(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a text, none wider than `width` columns; some letters take two."""
    from rich.console import Console
    from rich.text import Text

    console = Console(width=width)
    for line in text.splitlines():
        yield from (each.plain.rstrip() for each in Text(line).wrap(console, width) or [Text()])


def _spans(before: str, after: str) -> tuple[tuple[Kind, str, str], ...]:
    """Return the word-level diff of two texts: each span as its text has it, and the gap before it.

    The reading page's `diff.js` finds the same words.
    """
    a, b = list(_WORDS.finditer(before)), list(_WORDS.finditer(after))
    words = ([each.group() for each in a], [each.group() for each in b])
    matcher = SequenceMatcher(None, *words, autojunk=False)
    found: list[tuple[Kind, str, str]] = []
    for operation, start, stop, first, last in matcher.get_opcodes():
        if stop > start:
            kind: Kind = "same" if operation == "equal" else "removed"
            found.append(
                (kind, before[a[start].start() : a[stop - 1].end()], _gap(before, a, start))
            )
        if last > first and operation != "equal":
            text = after[b[first].start() : b[last - 1].end()]
            found.append(("added", text, _gap(after, b, first)))
    return tuple(found)


def _gap(text: str, words: Sequence[re.Match[str]], place: int) -> str:
    """Return the white space before a word."""
    return text[words[place - 1].end() : words[place].start()] if place else ""
