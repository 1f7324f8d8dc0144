"""State what a residual of SmolLM2 holds in four lines, and read such lines back.

The form of an explanation::

    About bees.
    Mentions: nectar
    Last: the < from < today
    Next: hive | flowers | field

Every line can be checked by programme, against the text up to the residual's token and the model's
own logits there: what the text is about (the request that it was written for), the last word of
content before its last word, its last three words from the end backwards, and the three likeliest
next tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..evaluation.grounding.next_token import spelled

SLOTS = ("subject", "content", "last", "next")
"""The slots, in the order of their lines."""
_FORM = re.compile(r"About (.*)\.\nMentions: (.*)\nLast: (.*)\nNext: (.*)", re.DOTALL)
_WORD = re.compile(r"[A-Za-z][a-z'-]{4,}")
_COMMON_WORDS = """
    about above across after again against almost along already although always among another
    around because become becomes before behind being below beneath beside between beyond could
    doing during either enough every everything first found given going however indeed instead
    itself little makes making maybe might myself never nothing often other others otherwise
    ourselves perhaps quite rather really right several shall should since something sometimes
    still taken their theirs themselves there therefore these thing things think those though
    through throughout today together toward towards under until using usually where whether
    which while whose within without would years yours yourself
"""
_COMMON = frozenset(_COMMON_WORDS.split())


@dataclass(frozen=True)
class Slots:
    """What an explanation says, line by line."""

    subject: str
    """What the text is about."""
    content: str
    """A recent word of content."""
    last: tuple[str, ...]
    """The last words, the very last one first."""
    next: tuple[str, ...]
    """The likeliest next tokens, without spaces around them."""


def truth(subject: str, text: str, next_tokens: Sequence[str]) -> Slots | None:
    """Return what a perfect verbalizer says after `text`.

    Args:
        subject: What the text is about.
        text: The text up to and including the residual's token.
        next_tokens: The model's likeliest next tokens, the likeliest first.

    Returns:
        ``None`` if the text is too short to have all slots.

    >>> truth("bees", "Dear Anna, I watched my bees collect nectar today from the", [" sun"])
    Slots(subject='bees', content='nectar', last=('the', 'from', 'today'), next=('sun',))
    """
    words = text.split()
    content = [w for w in _WORD.findall(" ".join(words[:-1])) if w.lower() not in _COMMON]
    if len(words) < 5 or not content:
        return None
    return Slots(subject, content[-1], tuple(words[:-4:-1]), tuple(map(spelled, next_tokens)))


def explanation(slots: Slots) -> str:
    """Return the text that says `slots`.

    >>> print(explanation(Slots("bees", "nectar", ("the", "from", "today"), ("sun", "flowers"))))
    About bees.
    Mentions: nectar
    Last: the < from < today
    Next: sun | flowers
    """
    return (
        f"About {slots.subject}.\nMentions: {slots.content}\nLast: {' < '.join(slots.last)}\n"
        f"Next: {' | '.join(slots.next)}"
    )


def parse(text: str | None) -> Slots | None:
    r"""Return what an explanation says; ``None`` if it has another form.

    >>> parse("About bees.\nMentions: nectar\nLast: the < from < today\nNext: sun | flowers").last
    ('the', 'from', 'today')
    """
    match = _FORM.fullmatch(text or "")
    if match is None:
        return None
    subject, content, last, following = match.groups()
    return Slots(subject, content, tuple(last.split(" < ")), tuple(following.split(" | ")))
