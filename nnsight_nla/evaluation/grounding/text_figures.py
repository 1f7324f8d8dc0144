"""Compare explanations with the text their vectors were read in, by programme alone."""

from __future__ import annotations

from collections.abc import Sequence

from .forms import Truth, known_truth
from .intervals import Share, share
from .mentions import mentions, place
from .next_token import SaysNext, agrees, says_next
from .rows import GroundedRow


def text_shares(
    texts: Sequence[str | None],
    rows: Sequence[GroundedRow],
    *,
    truth: Truth | None = None,
    says: SaysNext = says_next,
) -> dict[str, Share]:
    """Return how often explanations agree with the texts.

    Args:
        texts: The explanations; ``None`` or empty where the reply was malformed.
        rows: The text of each.
        truth: Compares an explanation with its label; by default the embedded pairs' own, if the
            labels are theirs.
        says: Finds what an explanation says comes next.

    Returns:
        * ``mentions so far``, ``mentions later``, ``mentions nowhere``: of the quotes, names and
          numbers in all explanations, the share that occurs in the text up to the vector's token,
          only in the rest of the document, or in neither;
        * ``next``: of all explanations, the share whose first named continuation is among the
          target's likeliest tokens; ``says next``: the share that names one;
        * by the name of each statement that `truth` compares, the share that is right; a statement
          with one of the names above is called ``label next``, say.

        What the rows do not have is left out.
    """
    found: dict[str, Share | None] = {}
    named = [(each, row) for text, row in zip(texts, rows, strict=True) if text
             for each in mentions(text)]  # fmt: skip
    places = [place(each, row) for each, row in named]
    for where in ("so far", "later", "nowhere"):
        found[f"mentions {where}"] = share([each == where for each in places])
    with_next = [(text, row) for text, row in zip(texts, rows, strict=True) if row.next_tokens]
    said = [says(text) if text else [] for text, _ in with_next]
    found["says next"] = share([bool(each) for each in said])
    found["next"] = share(
        [agrees(each, row.next_tokens) for each, (_, row) in zip(said, with_next, strict=True)]
    )
    truth = truth or known_truth(rows)
    if truth is not None:
        right = [truth(text, row.label) for text, row in zip(texts, rows, strict=True) if row.label]
        known = [each for each in right if each is not None]
        taken = set(found)
        for name in dict.fromkeys(name for each in known for name in each):
            found[f"label {name}" if name in taken else name] = share(
                [each[name] for each in known if name in each]
            )
    return {name: each for name, each in found.items() if each is not None}


def text_figures(texts: Sequence[str | None], rows: Sequence[GroundedRow]) -> dict[str, float]:
    """Return the shares of `text_shares` as numbers, with names for a log.

    >>> row = GroundedRow("a", "The bees fly home", next_tokens=(" in",))
    >>> text_figures(['Says "fly home" after "queen". Next: in'], [row])["mentions_so_far"]
    0.5
    """
    return {name.replace(" ", "_"): each.value for name, each in text_shares(texts, rows).items()}
