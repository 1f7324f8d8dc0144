"""Check ``positions=`` and ``explain_at=``, and align two prompts token by token.

Two prompts that differ in one place share the tokens before it and after it. A position in the
shared parts has a counterpart in the other prompt; so does one between them, where both prompts
have equally many tokens there. Where they do not, no token corresponds to another, and such a
position is refused by name.

>>> align([1, 2, 3, 4], [1, 9, 3, 4]).source
{0: 0, 1: 1, 2: 2, 3: 3}
>>> align([1, 2, 3, 4], [1, 8, 9, 3, 4]).source
{0: 0, 3: 2, 4: 3}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import ExperimentError, shown
from .records import Explained

Positions = int | Sequence[int | tuple[int, int]] | Literal["all", "aligned"]
"""``positions=``: a position of the prompt that is intervened on (negative: from the end), a list
of them, ``"all"``, or ``"aligned"``; where two prompts are unequal, also (clean, corrupt) pairs."""

ExplainAt = int | str | list[int | str]
"""``explain_at=``: a position, ``"patched"`` (each cell's own), or a list of these."""


@dataclass(frozen=True)
class Alignment:
    """The counterpart of each position of the corrupt prompt in the clean one."""

    source: dict[int, int]
    """Corrupt position to clean position, for those that have a counterpart."""
    clean: range
    """The positions of the clean prompt that have no counterpart."""
    corrupt: range
    """The positions of the corrupt prompt that have no counterpart."""


def align(clean: Sequence[int], corrupt: Sequence[int]) -> Alignment:
    """Align two prompts by what they share at both ends.

    Args:
        clean: Token ids of the clean prompt.
        corrupt: Token ids of the corrupt prompt.
    """
    if len(clean) == len(corrupt):
        return Alignment({i: i for i in range(len(corrupt))}, range(0), range(0))
    shorter = min(len(clean), len(corrupt))
    head = next((i for i in range(shorter) if clean[i] != corrupt[i]), shorter)
    rest = shorter - head
    tail = next((i for i in range(rest) if clean[-1 - i] != corrupt[-1 - i]), rest)
    source = {i: i for i in range(head)}
    source |= {len(corrupt) - i: len(clean) - i for i in range(tail, 0, -1)}
    return Alignment(source, range(head, len(clean) - tail), range(head, len(corrupt) - tail))


def pairs(
    positions: Any, clean: Sequence[str], corrupt: Sequence[str], alignment: Alignment
) -> list[tuple[int, int]]:
    """Return the (clean, corrupt) positions to patch, in order, each once.

    Args:
        positions: As `Positions`.
        clean: The tokens of the clean prompt.
        corrupt: The tokens of the corrupt prompt.
        alignment: The alignment of the two.

    Raises:
        ExperimentError: A position is out of range, or has no counterpart.
    """
    if isinstance(positions, str) and positions == "aligned":
        if not alignment.source:
            raise ExperimentError(
                'positions="aligned": the two prompts share no token at either end. Pair tokens '
                "yourself: positions=[(clean, corrupt), ...]."
            )
        return [(source, position) for position, source in sorted(alignment.source.items())]
    chosen = listed(positions, len(corrupt), also=("aligned",), pairs=True)
    found: dict[tuple[int, int], None] = {}
    for each in chosen:
        if isinstance(each, tuple):
            found[index(each[0], len(clean)), index(each[1], len(corrupt))] = None
            continue
        if each not in alignment.source:
            raise ExperimentError(_unaligned(each, clean, corrupt, alignment))
        found[alignment.source[each], each] = None
    return list(found)


def listed(
    positions: Any, length: int, *, also: tuple[str, ...] = (), pairs: bool = False
) -> list[Any]:
    """Return ``positions=`` as a list of positions counted from the left, each once.

    Raises:
        ExperimentError: It is something else, empty, or out of range.
    """
    words = ", ".join(repr(word) for word in ("all", *also))
    expected = f"Expected a position, a list of them, or {words}"
    if isinstance(positions, str) and positions == "last":
        expected += ". The last token is positions=-1"
    if isinstance(positions, str):
        if positions != "all":
            raise ExperimentError(f"positions={shown(positions)}. {expected}.")
        return list(range(length))
    try:
        given = [positions] if isinstance(positions, int) else list(positions)
    except TypeError:
        given = []
    if not given:
        raise ExperimentError(f"positions={shown(positions)}. {expected}.")
    found: dict[Any, None] = {}
    for each in given:
        if pairs and isinstance(each, tuple) and len(each) == 2:
            found[each] = None
        else:
            found[index(each, length)] = None
    return list(found)


def index(position: Any, length: int) -> int:
    """Return a position counted from the left.

    Raises:
        ExperimentError: It is not a whole number, or out of range.
    """
    if isinstance(position, bool) or not isinstance(position, int):
        raise ExperimentError(
            f"{position!r} is not a position: give whole numbers, negative ones from the end."
        )
    if not -length <= position < length:
        raise ExperimentError(
            f"Position {position}: the prompt has {length} tokens, positions 0 to {length - 1} "
            f"(or -{length} to -1)."
        )
    return position % length


def explained(explain_at: Any, length: int) -> Explained:
    """Check ``explain_at=``.

    Args:
        explain_at: A position, ``"patched"``, or a list of these.
        length: The number of tokens of the prompt that is intervened on.

    Raises:
        ExperimentError: It is something else, or out of range.
    """
    given: list[Any] = list(explain_at) if isinstance(explain_at, list | tuple) else [explain_at]
    strange = [each for each in given if isinstance(each, str) and each != "patched"]
    if strange or not given:
        raise ExperimentError(
            f'explain_at={shown(explain_at)}: expected a position (-1 is the last), "patched" '
            "(each cell's own position), or a list of these."
        )
    fixed = [each for each in given if each != "patched"]
    return Explained(tuple(listed(fixed, length)) if fixed else (), "patched" in given)


def _unaligned(
    position: int, clean: Sequence[str], corrupt: Sequence[str], alignment: Alignment
) -> str:
    ours = [clean[i] for i in alignment.clean]
    theirs = [corrupt[i] for i in alignment.corrupt]
    said = (
        f"Position {position} ({corrupt[position]!r}) has no counterpart: the clean prompt has "
        f"{ours} where the corrupt one has {theirs}, and no token of these corresponds to another. "
    )
    shared = (
        f'Write positions="aligned" for the {len(alignment.source)} shared ones, or pair'
        if alignment.source
        else "The two prompts share no token at either end. Pair"
    )
    # A pair of tokens that do not correspond: of the clean ones, the last there is.
    source = alignment.clean.stop - 1 if alignment.clean else max(0, alignment.clean.start - 1)
    return (
        f"{said}{shared} tokens yourself: positions=[(clean, corrupt), ...] such as ({source}, "
        f"{alignment.corrupt.stop - 1})."
    )
