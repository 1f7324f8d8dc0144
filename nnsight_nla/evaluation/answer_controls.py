"""Measure what an oracle answers without the vectors: the trust labels of its answers.

Three controls for each question: nothing written at the slots (one answer), random directions with
the median norm of the asked vectors (`RANDOM_CONTROLS` answers, in turn), and the vectors of the
next row, if it has as many slots. If that row asks the same question, its answer is there already.
The controls are made when a label is first read, and those without a vector of yours are kept for
later calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..core.answer_trust import AnswerTrust, same_answer
from ..core.locks import Lock
from ..explanation.handle import Explanation
from ..explanation.records import Capture
from .controls import random_vectors

if TYPE_CHECKING:
    from ..explanation.asked import Asked
    from ..verbalize.pending import Queue

RANDOM_CONTROLS = 8
"""The most random directions that one question is asked about."""
_Texts = dict[int, str]
_MOST_CACHED = 4096


class AnswerLabeller:
    """Measures the trust labels of an oracle's answers."""

    def __init__(self, queue: Queue) -> None:
        """Set up a labeller; nothing is measured yet.

        Args:
            queue: Answers the controls.
        """
        self._queue = queue
        self._known: dict[tuple[object, ...], str] = {}
        self._lock = Lock()

    def measure(self, capture: Capture, rows: Sequence[int]) -> dict[int, AnswerTrust]:
        """Label rows of a capture.

        Args:
            capture: The records of one ``ask()`` call.
            rows: The rows to label, all settled.

        Returns:
            Row to label. Rows that were not asked for, but ask the same question, count in its
            shares if they are settled.

        Raises:
            NLAError: The controls cannot be run.
        """
        asked = cast("Asked", capture.asked)
        wanted = {asked.questions[row] for row in rows}
        settled = [
            row
            for row in range(capture.count)
            if asked.questions[row] in wanted and row not in capture.errors and capture.settled(row)
        ]
        with self._lock.held():
            without = self._answers(capture, settled, None)
            random = self._answers(capture, settled, self._random(capture, settled))
            other = self._other(capture, settled)
        said = {"without": without, "random": random, "other": other}
        own = {row: capture.replies[row, 0].text for row in settled}
        return {row: _label(row, asked.questions, own, said) for row in rows}

    def _random(self, capture: Capture, rows: Sequence[int]) -> dict[int, Tensor]:
        """Return random vectors for each row; rows of one question take them in turn."""
        asked = cast("Asked", capture.asked)
        if not rows:
            return {}
        norms = torch.cat([capture.row(row).float().norm(dim=-1).cpu() for row in rows])
        norm = norms.median()
        width = capture.row(rows[0]).shape[-1]
        most = max(asked.slots)
        draws = random_vectors(
            RANDOM_CONTROLS * most,
            width,
            torch.Generator().manual_seed(0),
            norm.expand(RANDOM_CONTROLS * most),
        ).reshape(RANDOM_CONTROLS, most, width)
        turns: dict[str, itertools.count[int]] = {}
        found: dict[int, Tensor] = {}
        for row in rows:
            turn = next(turns.setdefault(asked.questions[row], itertools.count()))
            found[row] = draws[turn % RANDOM_CONTROLS, : asked.slots[row]]
        return found

    def _other(self, capture: Capture, rows: Sequence[int]) -> _Texts:
        """Return each row's answer to the vectors of the next row with as many slots."""
        asked = cast("Asked", capture.asked)
        found: _Texts = {}
        missing: dict[int, Tensor] = {}
        usable = [row for row in range(capture.count) if row not in capture.errors]
        for row in rows:
            later = [each for each in usable if each > row]
            turn = [*later, *(each for each in usable if each < row)]
            next_row = next((each for each in turn if _differs(capture, row, each)), None)
            if next_row is None:
                continue
            if asked.prompts[next_row] == asked.prompts[row] and capture.settled(next_row):
                found[row] = capture.replies[next_row, 0].text
            else:
                missing[row] = capture.row(next_row)
        return found | self._answers(capture, list(missing), missing, keep=False)

    def _answers(
        self,
        capture: Capture,
        rows: Sequence[int],
        vectors: dict[int, Tensor] | None,
        *,
        keep: bool = True,
    ) -> _Texts:
        """Return the answer to each row's question about other vectors, or about none."""
        asked = cast("Asked", capture.asked)
        keys = {
            row: (
                asked.prompts[row].ids,
                asked.choices,
                capture.sampling,
                None if vectors is None else vectors[row].float().cpu().numpy().tobytes(),
            )
            for row in rows
        }
        new: dict[tuple[object, ...], int] = {
            key: row for row, key in keys.items() if key not in self._known
        }
        answers = self._ask(capture, list(new.values()), vectors)
        if len(self._known) > _MOST_CACHED:
            self._known.clear()
        made: dict[tuple[object, ...], str] = dict(zip(new, answers, strict=True))
        if keep:
            self._known.update(made)
        every = {**self._known, **made}
        return {row: every[key] for row, key in keys.items()}

    def _ask(
        self, capture: Capture, rows: list[int], vectors: dict[int, Tensor] | None
    ) -> list[str]:
        """Ask the questions of these rows about other vectors, or about none."""
        if not rows:
            return []
        asked = cast("Asked", capture.asked)
        some = replace(
            asked,
            questions=tuple(asked.questions[row] for row in rows),
            prompts=tuple(asked.prompts[row] for row in rows),
            slots=tuple(asked.slots[row] for row in rows),
        )
        held = [
            torch.zeros_like(capture.row(row)) if vectors is None else vectors[row] for row in rows
        ]
        padded = torch.nn.utils.rnn.pad_sequence([each.float().cpu() for each in held], True)
        control = Capture(
            self._queue, padded, len(rows), 1, capture.sampling, null=vectors is None, asked=some
        )
        handle = Explanation.of(control, (len(rows),))
        self._queue.resolve_only([handle])
        return [control.replies[row, 0].text for row in range(len(rows))]


def _differs(capture: Capture, one: int, other: int) -> bool:
    """Return whether two rows have as many slots, and different vectors."""
    slots = cast("Asked", capture.asked).slots
    return slots[one] == slots[other] and not torch.equal(capture.row(one), capture.row(other))


def _label(row: int, questions: Sequence[str], own: _Texts, said: dict[str, _Texts]) -> AnswerTrust:
    question = questions[row]
    if row not in own:
        return AnswerTrust(question, reason="there is no answer")
    same = [each for each in own if questions[each] == question]
    shares: dict[str, float] = {}
    for name, texts in said.items():
        compared = [same_answer(own[each], texts[each]) for each in same if each in texts]
        if compared:
            shares[name] = sum(compared) / len(compared)
    return AnswerTrust(
        question,
        said["without"].get(row),
        said["random"].get(row),
        said["other"].get(row),
        tuple(
            name
            for name, texts in said.items()
            if row in texts and same_answer(own[row], texts[row])
        ),
        shares,
        len(same),
    )
