"""Choose the texts that an explanation is told apart from.

Two choices: other positions of the same document, which an explanation of the document as a whole
does not tell apart, and other documents, which it does. Both are fixed by the seed and the number
of the row, so a judge and a judge-free measure see the same ones::

    positions(source, 17, seed=0)    # [17, 3, 31, 24, 10], in the order to show them
"""

from __future__ import annotations

import random

from .rows import GroundedRows


def positions(source: GroundedRows, number: int, seed: int, count: int = 5) -> list[int] | None:
    """Return rows of one document, `number` included, evenly spaced and in an order by chance.

    The document is taken as a ring, so each row is as often a wrong answer as any other.

    Args:
        source: The rows.
        number: The row whose explanation is to be told apart.
        seed: Fixes the order, together with `number`.
        count: How many rows.

    Returns:
        Row numbers; ``None`` if the document has fewer than `count` different texts.
    """
    own = source.rows[number]
    by_text = {source.rows[each].text: each for each in source.by_document[own.document]}
    by_text[own.text] = number
    found = list(by_text.values())
    if len(found) < count:
        return None
    start = found.index(number)
    chosen = [found[(start + k * len(found) // count) % len(found)] for k in range(count)]
    _random(seed, number).shuffle(chosen)
    return chosen


def documents(source: GroundedRows, number: int, seed: int, count: int = 4) -> list[int] | None:
    """Return rows of different documents, `number` included, in an order by chance.

    Args:
        source: The rows.
        number: The row whose explanation is to be told apart.
        seed: Fixes the documents, their rows and the order, together with `number`.
        count: How many rows.

    Returns:
        Row numbers; ``None`` if there are fewer than `count` documents with different texts.
    """
    draw = _random(seed, number)
    own = source.rows[number]
    others = [name for name in source.by_document if name != own.document]
    draw.shuffle(others)
    chosen, texts = [number], {own.text}
    for name in others:
        if len(chosen) == count:
            break
        row = draw.choice(source.by_document[name])
        if source.rows[row].text not in texts:
            chosen.append(row)
            texts.add(source.rows[row].text)
    if len(chosen) < count:
        return None
    draw.shuffle(chosen)
    return chosen


def _random(seed: int, number: int) -> random.Random:
    return random.Random(f"{seed} {number}")
