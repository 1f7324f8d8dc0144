"""Warnings that a reader of an explanation needs, one plain sentence each.

They concern replies that were cut off, vectors that were probably not injected, and inputs that are
known to be noisy, according to the checkpoint's calibration. Warnings about positions and quotes
need to know where the vectors were read: ``explain(..., tokens=, positions=)``.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from .records import Capture

if TYPE_CHECKING:
    from torch import Tensor

ROUNDING = 0.001
"""How far, as a share, a norm may lie outside the usual range: bfloat16 and other processors."""
OUTLIER = 5.0
"""A norm is unusual if it is this many times larger or smaller than the usual one."""
UNIT = 0.005
"""How far from 1 the norm of a unit vector may be: bfloat16."""
_FEWEST_ROWS = 8  # For a meaningful median.
# Compiled at the first use (`re` caches it), because compiling so wide a class slows the import.
_CJK = "[\u3040-\u30ff\u3200-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
_FRAGMENT = "\ufffd"  # What part of a multi-byte character decodes to.
_QUOTE = re.compile('"([^"\n]{3,200})"|\u201c([^\u201d\n]{3,200})\u201d')


def kind_note(kind: str) -> str:
    """Return the warning on the explanation of a vector that is not a residual."""
    return f"its vector is a {kind}, and the verbalizer was trained on residuals"


def ignored_note(difference: str) -> str:
    """Return the warning on a vector whose origin was ignored; see `Origin.differences`."""
    return f"its vector may differ from what the verbalizer was trained on: {difference}"


def caveats(capture: Capture) -> dict[int, tuple[str, ...]]:
    """Return the warnings on every row of `capture` that has a reply.

    Returns:
        Row to sentences; rows without a warning are left out.
    """
    if capture.stored_warnings is not None:
        return capture.stored_warnings
    rows = sorted({row for row, _ in capture.replies})
    found: dict[int, list[str]] = {row: [] for row in rows}
    texts: dict[int, list[str]] = {row: [] for row in rows}
    for (row, _), reply in capture.replies.items():
        texts[row].append(reply.text)
    for (row, sample), reply in capture.replies.items():
        where = f"sample {sample}: " if capture.samples > 1 else ""
        if reply.finish == "length":
            found[row].append(
                f"{where}cut off after max_new_tokens={capture.sampling.max_new_tokens} tokens"
                f"{', without the closing tag' if reply.tagged else ''}"
            )
        elif reply.finish == "eos" and reply.tagged:
            found[row].append(f"{where}ended without a closing </explanation> tag")
    said = [ignored_note(each) for each in capture.ignored]
    if capture.origin.kind not in (None, "residual"):
        said.append(kind_note(str(capture.origin.kind)))
    for row in rows:
        found[row].extend(said)
    for row in rows:
        if row in capture.padding:
            found[row].append("read at padding, not at a token of a prompt")
    if texts and all(re.search(_CJK, text) for each in texts.values() for text in each):
        for row in rows:
            found[row].append(
                "CJK text in every output: the verbalizer seems to describe the marker itself; the "
                "vector may not have been injected where the verbalizer reads it"
            )
    norms, unlike = _norms(capture), _unlike(capture)
    for row in rows:
        found[row].extend(norms.get(row) or unlike.get(row, ()))
        early = None if capture.calibration is None else capture.calibration.noisy_positions
        if early and capture.positions is not None and 0 <= capture.positions[row] < early:
            found[row].append(
                f"position {capture.positions[row]}: explanations of the first {early} positions "
                "are worse than later ones, as measured for this verbalizer"
            )
    for row in rows:
        found_quotes = quotes(texts[row])
        context = text_so_far(capture, row) if found_quotes else None
        if context is not None:
            for quote in found_quotes:
                if not is_in(quote, context):
                    found[row].append(
                        f"quotes {quote!r}, which is not in the text up to this token"
                    )
    return {row: tuple(sentences) for row, sentences in found.items() if sentences}


def _norms(capture: Capture) -> dict[int, list[str]]:
    """Warn about each row whose norm is unusual, such as an attention sink's.

    The usual norm is the median of the prompt (the last axis), if its positions are known and there
    are enough of them; otherwise the mean of the vectors that the verbalizer was trained on.

    Returns:
        Row to sentences, an empty list for a usual norm. Rows that cannot be compared are left out.
    """
    from statistics import median

    if capture.vectors is None or capture.asked is not None:
        return {}
    norms = capture.vectors.float().norm(dim=-1).tolist()
    found: dict[int, list[str]] = {}
    for rows in capture.prompts():
        prompt = {row: norms[row] for row in rows if math.isfinite(norms[row])}
        if capture.positions is not None and len(prompt) >= _FEWEST_ROWS:
            usual, whose = median(prompt.values()), "the prompt's median"
        elif capture.usual_norm is not None:
            usual, whose = capture.usual_norm, "the training vectors' mean"
        else:
            continue
        for row, norm in prompt.items():
            far = norm > OUTLIER * usual or norm < usual / OUTLIER
            sink = ", as at an attention sink" if norm > OUTLIER * usual else ""
            found[row] = [f"its norm {norm:.4g} is far from {whose} {usual:.4g}{sink}"] * far
    return found


def atypical(capture: Capture) -> dict[int, str]:
    """Return why vectors are unlike the residuals that the verbalizer was trained on.

    Returns:
        Row to reason. Without a calibration that has statistics of those residuals, only vectors of
        norm 1 are found.
    """
    look = None if capture.calibration is None else capture.calibration.residuals
    if capture.vectors is None or capture.asked is not None:
        return {}
    if look is None:
        return _units(capture, capture.vectors)
    found: dict[int, str] = {}
    norms = capture.vectors.float().norm(dim=-1).tolist()
    for row, (near, norm) in enumerate(
        zip(look.typical(capture.vectors).tolist(), norms, strict=True)
    ):
        if near < look.least:
            found[row] = (
                f"cosine {near:z.2f} with the mean residual, usual {look.least:z.2f} or more"
            )
        elif not look.shortest * (1 - ROUNDING) <= norm <= look.longest * (1 + ROUNDING):
            found[row] = f"norm {norm:.4g}, usual {look.shortest:.4g} to {look.longest:.4g}"
    return found


def _units(capture: Capture, vectors: Tensor) -> dict[int, str]:
    """Return why vectors seem to be directions: all have norm 1, which residuals do not have.

    Returns:
        Row to reason; empty if the training vectors' norm is unknown or of this order, or if the
        caller said that they are no residuals.
    """
    usual = capture.usual_norm
    if usual is None or usual / OUTLIER <= 1 <= usual * OUTLIER:
        return {}
    norms = vectors.float().norm(dim=-1)
    known = norms.isfinite() & (norms > 0)
    if not bool(((norms[known] - 1).abs() < UNIT).all()):
        return {}
    why = f"norm 1, as directions have, usual {usual:.4g}. Say so: explain(..., kind='direction')"
    return {row: why for row, one in enumerate(known.tolist()) if one}


def _unlike(capture: Capture) -> dict[int, list[str]]:
    return {
        row: [f"its vector is not like those that the verbalizer was trained on: {why}"]
        for row, why in atypical(capture).items()
    }


def text_so_far(capture: Capture, row: int) -> str | None:
    """Return the text up to and including `row`; ``None`` unless the capture has all its tokens."""
    if capture.tokens is None or capture.positions is None:
        return None
    start = next(rows.start for rows in capture.prompts() if row in rows)
    if capture.positions[start : row + 1] != list(range(row - start + 1)):
        return None
    text = "".join(capture.tokens[start : row + 1])
    return None if _FRAGMENT in text else text


def is_in(quote: str, text: str) -> bool:
    """Return whether `text` has a quote, ignoring case, white space and final punctuation."""
    return _plain(quote) in _plain(text)


def quotes(texts: list[str]) -> list[str]:
    """Return the quotes in the texts, each once."""
    found = [a or b for text in texts for a, b in _QUOTE.findall(text)]
    return list(dict.fromkeys(found))


def _plain(text: str) -> str:
    """Remove what a tokenizer or a writer may change: case, white space, final punctuation."""
    return "".join(text.casefold().split()).rstrip(".,;:!?\u2026")
