"""Let a judge decide whether explanations are true of their texts.

There are four figures. Two measure whether an explanation identifies its position among others of
the same document, and its document among others. The third splits it into claims, each of which the
text supports, contradicts or does not mention. The fourth measures whether it would fit another
document just as well::

    source = read_rows("rows.parquet")
    print(estimate(questions_of(texts, source, numbers), judge.max_tokens))
    judged(judge, texts, source, numbers)["claims"]["precision"]

Read the last two together: a false explanation can be specific, and a vague one can be true.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ...errors import NLAError, shown
from . import questions
from .candidates import documents, positions
from .intervals import Share, share
from .judge import Judge, JudgeError
from .questions import JudgedClaim
from .rows import GroundedRows


@dataclass(frozen=True)
class Matched:
    """How often a judge was right; an explanation that is missing and an unclear answer are not."""

    share: Share | None
    """Of the rows with enough candidates; ``None`` if there are none."""
    unreadable: int
    """The answers that could not be read."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data: the share's fields, if there is one, and ``unreadable``."""
        found = {} if self.share is None else self.share.to_dict()
        return {**found, "unreadable": self.unreadable}


@dataclass(frozen=True)
class ClaimFigures:
    """What a judge found explanations to claim; texts whose answer is unreadable are left out."""

    precision: Share | None
    """The share of all claims that the text supports; claims count as independent."""
    contradicted: Share | None
    """The share of all claims that the text contradicts."""
    absent: Share | None
    """The share of all claims of which the text says nothing."""
    fabricated: float | None
    """The mean number of claims of an explanation that are not supported."""
    claims: float | None
    """The mean number of claims of an explanation."""
    texts: int
    """The number of explanations with a readable answer."""
    unreadable: int
    """The answers that could not be read."""
    by_text: tuple[tuple[JudgedClaim, ...] | None, ...]
    """The claims of each text; ``None`` without an explanation or a readable answer."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return asdict(self)


def judged(
    judge: Judge,
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """Return all figures as plain data; sends exactly the prompts of `questions_of`.

    Args:
        judge: Answers prompts.
        texts: The explanations, one for each of `numbers`; ``None`` where there is none.
        source: The rows.
        numbers: The numbers of the rows that the explanations are of.
        seed: Chooses the other positions and documents, and their order.

    Returns:
        ``position``, ``source``, ``claims`` and ``specificity``, with the ``version`` of the
        questions.

    Raises:
        NLAError: There are more texts or more numbers.
        JudgeError: The judge did not answer.
    """
    given = (judge, texts, source, numbers, seed)
    return {
        "version": questions.VERSION,
        "position": position_match(*given).to_dict(),
        "source": source_match(*given).to_dict(),
        "claims": claims_of(judge, texts, source, numbers).to_dict(),
        "specificity": specificity(*given).to_dict(),
    }


def questions_of(
    texts: Sequence[str | None], source: GroundedRows, numbers: Sequence[int], seed: int = 0
) -> list[str]:
    """Return the prompts that `judged` sends, to estimate their cost."""
    asked: list[str] = []

    def keep(prompts: Sequence[str]) -> list[str]:
        asked.extend(prompts)
        return [""] * len(prompts)

    judged(keep, texts, source, numbers, seed=seed)
    return asked


def position_match(
    judge: Judge,
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    seed: int = 0,
) -> Matched:
    """Return how often a judge tells the position from four others of the same document.

    Documents with fewer than five positions are left out.
    """
    return _match(judge, texts, source, numbers, lambda n: positions(source, n, seed), 1 / 5)


def source_match(
    judge: Judge,
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    seed: int = 0,
) -> Matched:
    """Return how often a judge tells the document from three others."""
    return _match(judge, texts, source, numbers, lambda n: documents(source, n, seed), 1 / 4)


def claims_of(
    judge: Judge, texts: Sequence[str | None], source: GroundedRows, numbers: Sequence[int]
) -> ClaimFigures:
    """Return what explanations claim, and how much of it their texts support."""
    prompts: list[str | None] = []
    for text, number in _paired(texts, source, numbers):
        row = source.rows[number]
        prompts.append(None if text is None else questions.claims(text, row.text, row.rest))
    answers = _ask(judge, prompts)
    found = [None if each is None else questions.read_claims(each) for each in answers]
    read = [claims for claims in found if claims is not None]
    verdicts = [claim.verdict for claims in read for claim in claims]
    wrong = sum(verdict != "supported" for verdict in verdicts)
    return ClaimFigures(
        precision=share([verdict == "supported" for verdict in verdicts]),
        contradicted=share([verdict == "contradicted" for verdict in verdicts]),
        absent=share([verdict == "absent" for verdict in verdicts]),
        fabricated=wrong / len(read) if read else None,
        claims=len(verdicts) / len(read) if read else None,
        texts=len(read),
        unreadable=sum(each is not None for each in answers) - len(read),
        by_text=tuple(None if claims is None else tuple(claims) for claims in found),
    )


def specificity(
    judge: Judge,
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    seed: int = 0,
) -> Matched:
    """Return how often an explanation would not fit another document, chosen at random."""
    prompts: list[str | None] = []
    for text, number in _paired(texts, source, numbers):
        pair = documents(source, number, seed, count=2)
        if pair is not None:
            other = next(each for each in pair if each != number)
            prompts.append(None if text is None else questions.fits(text, source.rows[other].text))
    answers = _ask(judge, prompts)
    read = [None if each is None else questions.read_yes(each) for each in answers]
    return _matched(answers, read, [False] * len(read), None)


def _match(
    judge: Judge,
    texts: Sequence[str | None],
    source: GroundedRows,
    numbers: Sequence[int],
    choose: Callable[[int], list[int] | None],
    chance: float,
) -> Matched:
    prompts: list[str | None] = []
    right: list[int] = []
    for text, number in _paired(texts, source, numbers):
        chosen = choose(number)
        if chosen is not None:
            shown_texts = [source.rows[each].text for each in chosen]
            prompts.append(None if text is None else questions.match(text, shown_texts))
            right.append(chosen.index(number))
    answers = _ask(judge, prompts)
    count = round(1 / chance)
    read = [None if each is None else questions.read_choice(each, count) for each in answers]
    return _matched(answers, read, right, chance)


def _matched(
    answers: Sequence[str | None],
    read: Sequence[int | None],
    right: Sequence[int],
    chance: float | None,
) -> Matched:
    unreadable = sum(a is not None and r is None for a, r in zip(answers, read, strict=True))
    return Matched(share([a == b for a, b in zip(read, right, strict=True)], chance), unreadable)


def _paired(
    texts: Sequence[str | None], source: GroundedRows, numbers: Sequence[int]
) -> list[tuple[str | None, int]]:
    if len(texts) != len(numbers):
        raise NLAError(
            f"Got {len(texts)} texts for {len(numbers)} numbers of rows; pass one text for each, "
            "None where a row has no explanation."
        )
    wrong = [number for number in numbers if not 0 <= number < len(source)]
    if wrong:
        raise NLAError(f"numbers={shown(wrong)}: expected 0 to {len(source) - 1}, as in source.")
    return list(zip(texts, numbers, strict=True))


def _ask(judge: Judge, prompts: Sequence[str | None]) -> list[str | None]:
    """Return the answers to the prompts that there are."""
    sent = [prompt for prompt in prompts if prompt is not None]
    if not sent:
        return [None] * len(prompts)
    given = list(judge(sent))
    if len(given) != len(sent) or not all(isinstance(answer, str) for answer in given):
        raise JudgeError(
            f"The judge returned {shown(given)} for {len(sent)} prompts; expected a list with an "
            "answer to each, as a string."
        )
    answers = iter(given)
    return [None if prompt is None else next(answers) for prompt in prompts]
