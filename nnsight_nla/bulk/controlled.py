"""The controls of an oracle's answers in a data set: what it answers without the vectors.

The rows of a chunk are each other's controls, so an interrupted run ends with the same answers::

    controls = ChunkControls(handles)
    nla.resolve([*handles, *controls.handles])      # answers and controls in the same batches
    controls.said()[0]                              # of the first handle, by position and control
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from ..core.injection import unusable
from ..evaluation.answer_controls import AnswerControls, Place
from . import records

if TYPE_CHECKING:
    from ..explanation.handle import Explanation


class ChunkControls:
    """The controls of all answers of a chunk."""

    def __init__(self, explanations: Sequence[Explanation | None]) -> None:
        """Prepare the controls; nothing is generated yet.

        Args:
            explanations: The handle of each row of the input; ``None`` where there is none.
        """
        self._at: list[tuple[int, int]] = []
        places: list[Place] = []
        for number, handle in enumerate(explanations):
            if handle is None:
                continue
            good = [row for row in handle.rows if not unusable(handle.capture.row(row))]
            places += [(handle.capture, row) for row in good]
            self._at += [(number, row) for row in good]
        self._made = AnswerControls(places, range(len(places)))

    @property
    def handles(self) -> list[Explanation]:
        """What has to be resolved before `said` is called."""
        return self._made.handles

    def said(self) -> dict[int, dict[int, dict[str, str]]]:
        """Return what the controls answer, by row of the input, position and control."""
        found: dict[int, dict[int, dict[str, str]]] = {}
        for number, row in self._at:
            found.setdefault(number, {})[row] = {}
        for name, texts in self._made.said().items():
            for place, text in texts.items():
                number, row = self._at[place]
                found[number][row][name] = text
        return found


def shares_unchanged(output: Path) -> Mapping[str, float]:
    """Return the share of the answers in a finished file that each control gives too.

    A control that no answer has, such as another row's vectors in a file of one row, is left out.
    """
    answers = dict.fromkeys(records.CONTROLS, 0)
    same = dict.fromkeys(records.CONTROLS, 0)
    names = [*records.CONTROLS.values(), records.UNCHANGED]
    for batch in pq.ParquetFile(output).iter_batches(columns=names):
        columns = batch.to_pydict()
        for name, column in records.CONTROLS.items():
            answers[name] += sum(each is not None for each in columns[column])
            same[name] += sum(name in (each or ()) for each in columns[records.UNCHANGED])
    return {name: same[name] / count for name, count in answers.items() if count}
