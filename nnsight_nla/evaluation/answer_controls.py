"""Measure what an oracle answers without the vectors: the trust labels of its answers.

Three controls for each question: nothing written at the slots (one answer), random directions with
the median norm of the asked vectors (`RANDOM_CONTROLS` answers, in turn), and the vectors of
another row with as many slots. That is the row at the same place in the next prompt, or, within one
prompt, the next row; if it asks the same question, its answer is there already.

`AnswerControls` asks them about any rows, in the same batches as the answers themselves.
`AnswerLabeller` makes the labels of a handle when one is first read, and keeps the answers that do
not depend on your vectors for later calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from ..core.answer_trust import AnswerTrust, same_answer
from ..core.locks import Lock
from ..explanation.handle import Explanation
from ..explanation.records import Capture
from .controls import random_vectors
from .other_rows import other_rows

if TYPE_CHECKING:
    from ..checkpoint.prompt import Prompt
    from ..explanation.asked import Asked
    from ..verbalize.pending import Queue

RANDOM_CONTROLS = 8
"""The most random directions that one question is asked about."""
Place = tuple[Capture, int]
"""A row of a capture."""
_Texts = dict[int, str]
_Key = tuple[object, ...]
_MOST_CACHED = 4096


class AnswerControls:
    """The controls of some rows: what is asked, and the answers once the handles are resolved."""

    def __init__(
        self,
        places: Sequence[Place],
        rows: Collection[int],
        *,
        known: Mapping[_Key, str] | None = None,
    ) -> None:
        """Prepare the controls; nothing is generated yet.

        Args:
            places: Rows of one or several captures, in the order of their prompts. All are of one
                oracle and block, with the same choices and sampling, and have usable vectors.
            rows: The numbers of those in `places` that get controls; they are settled, or are
                settled together with `handles`.
            known: Answers that were generated before.
        """
        self._places, self._known = places, dict(known or {})
        self._own, others = _others(places, rows)
        held: dict[str, dict[int, Tensor | None]] = {
            "without": dict.fromkeys(rows),
            "random": {**_random(places, rows)},
            "other": {**others},
        }
        self._keys: dict[str, dict[int, _Key]] = {}
        new: dict[_Key, tuple[Place, Tensor | None]] = {}
        for name, vectors in held.items():
            keys = {row: _key(places[row], each) for row, each in vectors.items()}
            self._keys[name] = keys
            for row, key in keys.items():
                if key not in self._known:
                    new.setdefault(key, (places[row], vectors[row]))
        self.handles: list[Explanation] = []
        """What has to be resolved before `said` is called."""
        self._made: dict[_Key, Place] = {}
        for null in (True, False):
            group = {key: each for key, each in new.items() if (each[1] is None) == null}
            if group:
                capture = _control(list(group.values()))
                self.handles.append(Explanation.of(capture, (len(group),)))
                self._made |= {key: (capture, number) for number, key in enumerate(group)}

    def said(self) -> dict[str, _Texts]:
        """Return the answers by control, ``"without"``, ``"random"`` and ``"other"``, and row."""
        found = {
            name: {row: self._text(key) for row, key in keys.items()}
            for name, keys in self._keys.items()
        }
        found["other"] |= {row: _said(self._places[each]) for row, each in self._own.items()}
        return found

    def kept(self) -> dict[_Key, str]:
        """Return the answers that do not depend on another row."""
        keys = [*self._keys["without"].values(), *self._keys["random"].values()]
        return {key: self._text(key) for key in keys}

    def _text(self, key: _Key) -> str:
        return self._known[key] if key in self._known else _said(self._made[key])


class AnswerLabeller:
    """Measures the trust labels of an oracle's answers."""

    def __init__(self, queue: Queue) -> None:
        """Set up a labeller; nothing is measured yet.

        Args:
            queue: Answers the controls.
        """
        self._queue = queue
        self._known: dict[_Key, str] = {}
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
        questions = _asked(capture).questions
        wanted = {questions[row] for row in rows}
        usable = [row for row in range(capture.count) if row not in capture.errors]
        settled = [
            number
            for number, row in enumerate(usable)
            if questions[row] in wanted and capture.settled(row)
        ]
        places = [(capture, row) for row in usable]
        with self._lock.held():
            controls = AnswerControls(places, settled, known=self._known)
            self._queue.resolve_only(controls.handles)
            if len(self._known) > _MOST_CACHED:
                self._known.clear()
            self._known |= controls.kept()
        said = {
            name: {usable[number]: text for number, text in texts.items()}
            for name, texts in controls.said().items()
        }
        own = {usable[number]: _said(places[number]) for number in settled}
        return {row: _label(row, questions, own, said) for row in rows}


def unchanged(text: str, said: Mapping[str, str | None]) -> tuple[str, ...]:
    """Return the names of the controls that give the same answer.

    >>> unchanged("Paris", {"without": "paris.", "random": "Rome", "other": None})
    ('without',)
    """
    return tuple(
        name for name, each in said.items() if each is not None and same_answer(text, each)
    )


def _asked(capture: Capture) -> Asked:
    return cast("Asked", capture.asked)


def _said(place: Place) -> str:
    capture, row = place
    return capture.replies[row, 0].text


def _prompt(place: Place) -> Prompt:
    capture, row = place
    return _asked(capture).prompts[row]


def _slots(place: Place) -> int:
    capture, row = place
    return _asked(capture).slots[row]


def _vectors(place: Place) -> Tensor:
    capture, row = place
    return capture.row(row).float().cpu()


def _key(place: Place, vectors: Tensor | None) -> _Key:
    """Return everything that an answer depends on."""
    capture, row = place
    asked = _asked(capture)
    held = None if vectors is None else vectors.float().cpu().numpy().tobytes()
    return (asked.prompts[row].ids, asked.choices, capture.sampling, held)


def _control(asked: Sequence[tuple[Place, Tensor | None]]) -> Capture:
    """Return a capture that asks each row's question about other vectors, or about none."""
    (first, _), *_ = asked[0]
    rows = [place for place, _ in asked]
    some = replace(
        _asked(first),
        questions=tuple(_asked(capture).questions[row] for capture, row in rows),
        prompts=tuple(_asked(capture).prompts[row] for capture, row in rows),
        slots=tuple(map(_slots, rows)),
    )
    held = [torch.zeros_like(_vectors(place)) if each is None else each for place, each in asked]
    padded = torch.nn.utils.rnn.pad_sequence([each.float().cpu() for each in held], True)
    null = asked[0][1] is None
    return Capture(first.queue, padded, len(rows), 1, first.sampling, null=null, asked=some)


def _random(places: Sequence[Place], rows: Collection[int]) -> dict[int, Tensor]:
    """Return random vectors for each row; rows of one question take them in turn."""
    if not rows:
        return {}
    norm = torch.cat([_vectors(places[row]).norm(dim=-1) for row in rows]).median()
    most = max(map(_slots, places))
    width = _vectors(places[0]).shape[-1]
    draws = random_vectors(
        RANDOM_CONTROLS * most,
        width,
        torch.Generator().manual_seed(0),
        norm.expand(RANDOM_CONTROLS * most),
    ).reshape(RANDOM_CONTROLS, most, width)
    turns: dict[str, itertools.count[int]] = {}
    found: dict[int, Tensor] = {}
    for row in rows:
        capture, place = places[row]
        question = _asked(capture).questions[place]
        turn = next(turns.setdefault(question, itertools.count()))
        found[row] = draws[turn % RANDOM_CONTROLS, : _slots(places[row])]
    return found


def _others(
    places: Sequence[Place], rows: Collection[int]
) -> tuple[dict[int, int], dict[int, Tensor]]:
    """Choose another row for each: one whose answer is there, or one whose vectors are asked about.

    Returns:
        Row to the row that has its answer, and row to vectors.
    """
    own: dict[int, int] = {}
    missing: dict[int, Tensor] = {}
    answered, vectors = set(rows), [_vectors(each) for each in places]
    for row, other in other_rows(list(_prompts(places)), vectors, answered).items():
        same = _prompt(places[other]) == _prompt(places[row])
        if same and other in answered:
            own[row] = other
        else:
            missing[row] = vectors[other]
    return own, missing


def _prompts(places: Sequence[Place]) -> Iterator[list[int]]:
    """Group the rows that were read in one prompt."""
    starts: dict[int, dict[int, int]] = {}

    def prompt(number: int) -> tuple[int, int]:
        capture, row = places[number]
        of_row = starts.setdefault(
            id(capture),
            {each: n for n, span in enumerate(capture.prompts()) for each in span},
        )
        return id(capture), of_row[row]

    for _, group in itertools.groupby(range(len(places)), prompt):
        yield list(group)


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
    here = {name: texts.get(row) for name, texts in said.items()}
    return AnswerTrust(
        question, **here, unchanged=unchanged(own[row], here), shares=shares, answers=len(same)
    )
