"""What a careful reader of an explanation should know: warnings on known-noisy inputs.

Each is a plain sentence on one row. Those that speak of positions, norms or quotes need to know
where the vectors were read (``explain(..., tokens=, positions=)``); else they stay silent.
"""

from __future__ import annotations

import math
import re

from .records import Capture

EARLY = 10
"""Positions below this are known to be noisy."""
OUTLIER = 5.0
"""A norm this many times above or below the median of its prompt is far outside the bulk."""
_BULK = 8
# Compiled when first used (`re` keeps it): so wide a class takes longer than all else here to load.
_CJK = "[\u3040-\u30ff\u3200-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
_FRAGMENT = "\ufffd"  # What a token decodes to that is part of a character only.
_QUOTE = re.compile('"([^"\n]{3,200})"|\u201c([^\u201d\n]{3,200})\u201d')


def caveats(capture: Capture) -> dict[int, tuple[str, ...]]:
    """The warnings of every settled row of `capture`.

    Returns:
        Row to sentences; rows without a warning are left out.
    """
    rows = sorted({row for row, _ in capture.replies})
    found: dict[int, list[str]] = {row: [] for row in rows}
    texts: dict[int, list[str]] = {row: [] for row in rows}
    for (row, _), reply in capture.replies.items():
        texts[row].append(reply.text)
    for (row, sample), reply in capture.replies.items():
        where = f"sample {sample}: " if capture.samples > 1 else ""
        if reply.finish == "length":
            found[row].append(
                f"{where}cut off after max_new_tokens={capture.sampling.max_new_tokens} tokens, "
                "the closing tag never came"
            )
        elif reply.finish == "eos":
            found[row].append(f"{where}ended without a closing </explanation> tag")
    if texts and all(re.search(_CJK, text) for each in texts.values() for text in each):
        for row in rows:
            found[row].append(
                "CJK text in every output: the marker itself is being verbalized; the vector may "
                "not have been written where the verbalizer looks"
            )
    if capture.positions is not None:
        for row in rows:
            if 0 <= capture.positions[row] < EARLY:
                found[row].append(
                    f"position {capture.positions[row]}: the first {EARLY} positions are known to "
                    "be noisy"
                )
        for row, sentence in _outliers(capture).items():
            if row in found:
                found[row].append(sentence)
    for row in rows:
        context = _context(capture, row)
        if context is not None:
            for quote in _quotes(texts[row]):
                if _plain(quote) not in context:
                    found[row].append(f"quotes {quote!r}, which is not in the text before it")
    return {row: tuple(sentences) for row, sentences in found.items() if sentences}


def _outliers(capture: Capture) -> dict[int, str]:
    """Rows whose norm is far from the median of their prompt (the last axis)."""
    from statistics import median

    if capture.vectors is None:
        return {}
    norms = capture.vectors.float().norm(dim=-1).tolist()
    found: dict[int, str] = {}
    for start in range(0, capture.count, max(capture.width, 1)):
        prompt = {
            row: norm
            for row, norm in enumerate(norms[start : start + capture.width], start)
            if math.isfinite(norm)
        }
        if len(prompt) < _BULK:
            continue
        bulk = median(prompt.values())
        for row, norm in prompt.items():
            if norm > OUTLIER * bulk or norm < bulk / OUTLIER:
                found[row] = f"its norm {norm:.4g} is far from the prompt's median {bulk:.4g}"
    return found


def _context(capture: Capture, row: int) -> str | None:
    """The text up to `row`, where tokens and positions say that all of it is known."""
    if capture.tokens is None or capture.positions is None:
        return None
    start = row - row % capture.width
    if capture.positions[start : row + 1] != list(range(row - start + 1)):
        return None
    text = "".join(capture.tokens[start : row + 1])
    return None if _FRAGMENT in text else _plain(text)


def _quotes(texts: list[str]) -> list[str]:
    found = [a or b for text in texts for a, b in _QUOTE.findall(text)]
    return list(dict.fromkeys(found))


def _plain(text: str) -> str:
    """`text` without what a tokenizer or a writer may change: case, white space, end marks."""
    return "".join(text.casefold().split()).rstrip(".,;:!?\u2026")
