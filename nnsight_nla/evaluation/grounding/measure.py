"""Evaluate a verbalizer against the texts its vectors were read in.

FVE says how much of a vector the reconstructor recovers from the words. It does not say that the
words are true: the two models may have agreed on a code, and false text can carry as much. These
figures measure whether the source text supports what the explanation says::

    figures = grounded(nla, read_rows("held_out.rows.parquet"), limit=200)
    figures["source"]["cosine"]["value"], figures["text"]["next"]["value"]

* **text**: how many of the quotes, names and numbers occur in the text, how often the named next
  token is among the target's, and, if a program can check the labels, how often
  each statement is right (``label next`` where ``next`` would mean both); under **shuffled** the
  same for the text of another document;
* **position** and **source**: can the position (out of five) or the document (out of four) be
  identified from the explanation alone? Measured with the reconstructor's ``cosine`` and with the
  verbalizer's ``likelihood``;
* **judge**: the same two questions, and the truth of each claim, answered by a judge that you pass;
* **agreement**: how well the figures that need no truth tell right statements from wrong ones, as
  areas under the ROC curve, by statement.

Each share has a 95% interval, and a chance level if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...core.numeric import is_int
from ...errors import NLAError, shown
from .agreement import auc
from .forms import Truth, known_truth
from .judge import Judge
from .judged import judged
from .matching import Scores, by_cosine, by_likelihood, match
from .mentions import mentions, place
from .next_token import SaysNext, agrees, says_next
from .rows import GroundedRows
from .text_figures import text_shares

if TYPE_CHECKING:
    from ...explanation.protocols import ExplainsAndReconstructs
    from ..evaluate import Figures
    from .intervals import Share


def grounded(
    nla: ExplainsAndReconstructs,
    source: GroundedRows,
    *,
    limit: int | None = 200,
    truth: Truth | None = None,
    says: SaysNext = says_next,
    judge: Judge | None = None,
    seed: int = 0,
) -> Figures:
    """Evaluate a verbalizer against the texts its vectors were read in.

    Args:
        nla: The NLA; without a reconstructor nothing is matched by cosine.
        source: Vectors with their texts, see `read_rows`. For position match a document has
            rows at five positions or more.
        limit: The largest number of rows to explain, spread over the documents. Other rows serve
            as candidates.
        truth: Compares an explanation with its label; by default that of the bundled pairs.
        says: Finds what an explanation says comes next.
        judge: Answers prompts, such as an `EndpointJudge`; without one nothing is asked.
        seed: Chooses rows and candidates.

    Raises:
        NLAError: There are no rows, `limit` is not a number from 1, or the explanations cannot be
            made.
        JudgeError: The judge did not answer.
    """
    if not len(source):
        raise NLAError("source has no rows, and at least one is needed. Hold out more documents.")
    if limit is not None and not is_int(limit, 1):
        raise NLAError(f"limit is {shown(limit)}, expected a number of rows from 1, or None.")
    numbers = spread(source, limit)
    told = nla.explain(source.vectors[numbers])
    nla.resolve(told)
    found, malformed = told.extracted()
    texts = [None if row in malformed else text for row, text in enumerate(found)]
    rows = [source.rows[number] for number in numbers]
    truth = truth or known_truth(rows)
    elsewhere = _elsewhere(source, numbers)
    others = None if elsewhere is None else [source.rows[number] for number in elsewhere]
    ways = {"cosine": by_cosine(nla)} if nla.has_reconstructor else {}
    ways["likelihood"] = by_likelihood(nla)
    figures: Figures = {
        "rows": len(numbers),
        "documents": len({row.document for row in rows}),
        "text": _plain(text_shares(texts, rows, truth=truth, says=says)),
        "shuffled": _plain(
            {} if others is None else text_shares(texts, others, truth=truth, says=says)
        ),
        "position": None,
        "source": None,
        "judge": None if judge is None else judged(judge, texts, source, numbers, seed=seed),
        "agreement": _agreement(ways, source, numbers, texts, truth, says),
    }
    for kind in ("position", "source"):
        shares = {
            name: match(kind, texts, source, numbers, scores, seed) for name, scores in ways.items()
        }
        if any(shares.values()):
            figures[kind] = _plain(shares)
    return figures


def spread(source: GroundedRows, limit: int | None) -> list[int]:
    """Return the numbers of rows spread over the documents, in their order.

    A document gives its middle row first, then others; no document gives a second row before all
    have given one.
    """
    queues = [_from_the_middle(numbers) for numbers in source.by_document.values()]
    turns = [
        number
        for turn in range(max(map(len, queues), default=0))
        for queue in queues
        if turn < len(queue)
        for number in queue[turn : turn + 1]
    ]
    if limit is None or limit >= len(turns):
        return sorted(turns)
    if limit < len(queues):  # Evenly over the documents, which may be sorted by source.
        return sorted(turns[i * len(queues) // limit] for i in range(limit))
    return sorted(turns[:limit])


def _from_the_middle(numbers: Sequence[int]) -> list[int]:
    middle = (len(numbers) - 1) / 2
    return [numbers[i] for i in sorted(range(len(numbers)), key=lambda i: abs(i - middle))]


def _elsewhere(source: GroundedRows, numbers: Sequence[int]) -> list[int] | None:
    """Return for each row one of another document; ``None`` if there is only one document."""
    if len({source.rows[number].document for number in numbers}) < 2:
        return None
    found: list[int] = []
    for place_, number in enumerate(numbers):
        later = (*numbers[place_ + 1 :], *numbers[:place_])
        own = source.rows[number].document
        found.append(next(n for n in later if source.rows[n].document != own))
    return found


def _agreement(
    ways: Mapping[str, Scores],
    source: GroundedRows,
    numbers: Sequence[int],
    texts: Sequence[str | None],
    truth: Truth | None,
    says: SaysNext,
) -> dict[str, dict[str, float | None]] | None:
    """Return how well what needs no truth tells right statements from wrong ones."""
    if truth is None:
        return None
    kept = [
        (text, source.rows[number], number)
        for text, number in zip(texts, numbers, strict=True)
        if text and source.rows[number].label
    ]
    right = [truth(text, row.label or "") for text, row, _ in kept]
    kept = [each for each, known in zip(kept, right, strict=True) if known is not None]
    known = [each for each in right if each is not None]
    if not kept:
        return None
    said, vectors = [text for text, *_ in kept], source.vectors[[n for *_, n in kept]]
    measures: dict[str, Sequence[float | None]] = {
        **{name: scores(said, vectors).tolist() for name, scores in ways.items()},
        "mentions so far": [_share_so_far(text, row) for text, row, _ in kept],
        "next": [
            float(agrees(says(text), row.next_tokens)) if row.next_tokens else None
            for text, row, _ in kept
        ],
    }
    statements = list(dict.fromkeys(name for each in known for name in each))
    return {
        name: {
            statement: auc(values, [bool(each.get(statement)) for each in known])
            for statement in statements
        }
        for name, values in measures.items()
    }


def _share_so_far(text: str, row: Any) -> float | None:
    places = [place(each, row) == "so far" for each in mentions(text)]
    return sum(places) / len(places) if places else None


def _plain(shares: dict[str, Share | None] | dict[str, Share]) -> dict[str, Any]:
    return {name: None if each is None else each.to_dict() for name, each in shares.items()}
