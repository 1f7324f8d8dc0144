r"""Take the explanation out of a verbalizer's reply.

A verbalizer is trained to write its explanation between two tags, and the explanation consists of a
few snippets:

>>> reply = wrap("A city.\n\nIts language.")
>>> text, closed = extract(reply)
>>> snippets(text), closed
(('A city.', 'Its language.'), True)
"""

from __future__ import annotations

import re

OPEN, CLOSE = "<explanation>", "</explanation>"


def wrap(text: str) -> str:
    r"""Put an explanation between its tags, as in the training data.

    >>> wrap("About Paris.")
    '<explanation>\nAbout Paris.\n</explanation>'
    """
    return f"{OPEN}\n{text}\n{CLOSE}"


def extract(raw: str) -> tuple[str, bool]:
    r"""Return the explanation in a reply, and whether the reply has a closing tag.

    Without the tags, the whole reply counts as the explanation.

    >>> extract("<explanation>\nAbout Paris.\n</explanation>")
    ('About Paris.', True)
    >>> extract("<explanation>About Par")
    ('About Par', False)
    """
    body = raw.split(OPEN, 1)[-1]
    text, closing, _ = body.partition(CLOSE)
    return text.strip(), bool(closing)


def opened(tail: str) -> str:
    r"""Return the beginning of an explanation that the end of a prompt already has, or "".

    Some chat templates write the opening tag, or more, after the assistant's header.

    >>> opened("<|assistant|>\n<explanation>\n")
    '<explanation>\n'
    >>> opened("<|assistant|>\n")
    ''
    """
    _, tag, rest = tail.rpartition(OPEN)
    return "" if CLOSE in rest else tag + (rest if tag else "")


def complete(raw: str, opened: str) -> str:
    r"""Return a reply with what the prompt opened; a tag that the reply repeats is dropped.

    >>> complete("About Paris.</explanation>", "<explanation>\n")
    '<explanation>\nAbout Paris.</explanation>'
    """
    return opened + remainder(raw, opened) if opened else raw


def remainder(reply: str, opened: str) -> str:
    r"""Return the part of a complete reply that is left to generate after what the prompt opened.

    >>> remainder("<explanation>\nAbout Paris.\n</explanation>", "<explanation>\n")
    'About Paris.\n</explanation>'
    """
    if not opened or not reply.lstrip().startswith(OPEN):
        return reply
    if reply.startswith(opened):
        return reply[len(opened) :]
    left = reply.split(OPEN, 1)[1].lstrip()
    return left.removeprefix(opened.removeprefix(OPEN).lstrip())


def proper(raw: str) -> str | None:
    r"""Return why a reply is not well-formed (a tag or the text is missing), or ``None`` if it is.

    >>> proper("<explanation>About Paris.</explanation>") is None
    True
    >>> proper("<explanation>About Par")
    'the reply has no closing </explanation> tag'
    """
    if OPEN not in raw:
        return f"the reply has no {OPEN} tag"
    text, closed = extract(raw)
    if not closed:
        return f"the reply has no closing {CLOSE} tag"
    if OPEN in text:
        return f"the reply has {OPEN} twice"
    return None if text else "the explanation is empty"


def first_line(text: str) -> str:
    r"""Return the first line of a text that is not empty.

    >>> first_line("\n A city.\nIts language.")
    'A city.'
    """
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def snippets(text: str) -> tuple[str, ...]:
    r"""Split an explanation into its paragraphs, or a single paragraph into its lines.

    >>> snippets("A city.\n\nIts language.")
    ('A city.', 'Its language.')
    >>> snippets("A city.\nIts language.")
    ('A city.', 'Its language.')
    """
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) == 1:
        parts = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(parts)
