"""A cell of a sweep: one intervention at one place, and what it can reach.

What is explained is the residual at the output of block K, at some position q. An intervention in
block L at position p reaches it in two cases only, for information moves up and to the right::

    L < K and p <= q      through the blocks between, by attention where p < q
    L = K and p = q       directly

Everywhere else the text *cannot* change, whatever the effect on the output, and a table that said
"unchanged" there would be read as a finding.

>>> reach(2, 1, 3, 3), reach(4, 1, 3, 3)
('reaches', 'downstream of the verbalized layer')
>>> reach(3, 3, 3, 3), reach(3, 1, 3, 3), reach(0, 3, 3, 1)
('reaches', 'beside the explained position', 'after the explained position')
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .alignment import listed
from .errors import ExperimentError

REACHES = "reaches"
DOWNSTREAM = "downstream of the verbalized layer"
BESIDE = "beside the explained position"
AFTER = "after the explained position"

ExplainAt = int | str | list[int | str]
"""``explain_at=``: a position, ``"patched"`` (each cell's own), or a list of these."""


@dataclass(frozen=True, order=True)
class Cell:
    """One intervention at one place."""

    site: str
    """``residual``, ``attention``, ``mlp`` or ``head``."""
    layer: int
    """The block, counted from 0."""
    head: int | None
    """Which head, where the site is one."""
    position: int | None
    """Where in the prompt, counted from the left; ``None``: at every position at once."""
    source: int | None = None
    """For a patch: where in the clean prompt the value comes from."""
    kind: str = "patch"
    """What is done: ``patch``, ``zero``, ``mean``, ``resample``, ``project``, ``steer``, or
    ``random 0``, ``random 1``, ... for the controls of a steer."""
    dose: float | None = None
    """What a steering vector is multiplied with."""


def reach(layer: int, position: int | None, k: int, explained: int) -> str:
    """Whether an intervention reaches the residual that is explained, and if not, why.

    Args:
        layer: The block that is written in, at any of its sites.
        position: Where it is written; ``None`` for everywhere.
        k: The block whose output is explained.
        explained: Where it is explained.
    """
    if layer > k:
        return DOWNSTREAM
    if position is None or position == explained:
        return REACHES
    if layer == k:
        return BESIDE
    return REACHES if position < explained else AFTER


@dataclass(frozen=True)
class Explained:
    """Where the residual is explained: fixed positions, and perhaps each cell's own."""

    positions: tuple[int, ...]
    """Counted from the left of the prompt that is intervened on."""
    own: bool
    """Whether also at the position that a cell is written at."""

    def of(self, cell: Cell) -> list[int]:
        """The positions explained for one cell, each once."""
        own = [cell.position] if self.own and cell.position is not None else []
        return list(dict.fromkeys([*self.positions, *own]))

    def reached(self, cell: Cell, k: int) -> list[int]:
        """Those of them that the cell can change."""
        return [at for at in self.of(cell) if reach(cell.layer, cell.position, k, at) == REACHES]


def explained(explain_at: Any, length: int) -> Explained:
    """Check ``explain_at=``.

    Args:
        explain_at: A position, ``"patched"``, or a list of these.
        length: The number of tokens of the prompt that is intervened on.

    Raises:
        ExperimentError: It is something else, or out of range.
    """
    given = list(explain_at) if isinstance(explain_at, list | tuple) else [explain_at]
    strange = [each for each in given if isinstance(each, str) and each != "patched"]
    if strange or not given:
        raise ExperimentError(
            f'explain_at={explain_at!r}: expected a position (-1 is the last), "patched" (each '
            "cell's own position), or a list of these."
        )
    own = "patched" in given
    fixed = [each for each in given if each != "patched"]
    return Explained(tuple(listed(fixed, length)) if fixed else (), own)
