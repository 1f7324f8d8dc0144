"""Choose another row for each row of an oracle's prompts: a control of its answer.

The other row is at the same place in the next prompt, or, if its vectors are equal or have another
number of slots, a later one: of that prompt, of the prompts after it, and of the row's own prompt
last. The time is linear in the number of rows, also where most vectors are equal.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Sequence

from jaxtyping import Float
from torch import Tensor

from ..core.injection import unusable

_Kind = Hashable


def other_rows(
    prompts: Sequence[Sequence[int]],
    vectors: Sequence[Float[Tensor, "_slots d_model"]],
    rows: Iterable[int],
) -> dict[int, int]:
    """Return another row for each row, with as many slots and other vectors that can be written.

    Args:
        prompts: The numbers of the rows of each prompt, in order.
        vectors: Each row's vectors, ``[slots, d_model]``.
        rows: The rows to choose for. Those for which there is no other are left out.
    """
    kinds = _kinds(vectors)
    circles = {slots: _Prompts(prompts, vectors, kinds, slots) for slots in set(map(len, vectors))}
    wanted = set(rows)
    found: dict[int, int] = {}
    for number, prompt in enumerate(prompts):
        for offset, row in enumerate(prompt):
            if row in wanted:
                other = circles[len(vectors[row])].other(number, offset, kinds[row])
                if other is not None:
                    found[row] = other
    return found


def _kinds(vectors: Sequence[Tensor]) -> list[int]:
    """Return a number for each row, the same for rows of equal vectors."""
    known: dict[tuple[int, bytes], int] = {}
    # Adding 0 makes -0 equal to 0, as it is for `torch.equal`.
    keys = [(len(each), (each.float().cpu() + 0.0).numpy().tobytes()) for each in vectors]
    return [known.setdefault(key, len(known)) for key in keys]


class _Prompts:
    """The rows of some prompts that have a certain number of slots and can be written."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        vectors: Sequence[Tensor],
        kinds: Sequence[int],
        slots: int,
    ) -> None:
        self._prompts = prompts
        self._rows: dict[int, _Circle] = {}
        whole: list[tuple[int, _Kind]] = []
        for number, prompt in enumerate(prompts):
            held = [
                (offset, kinds[row])
                for offset, row in enumerate(prompt)
                if len(vectors[row]) == slots and not unusable(vectors[row])
            ]
            if held:
                self._rows[number] = _Circle(held)
                different = {kind for _, kind in held}
                # A prompt with several kinds has another one for every row.
                whole.append((number, held[0][1] if len(different) == 1 else object()))
        self._numbers = _Circle(whole)

    def other(self, number: int, offset: int, kind: int) -> int | None:
        """Return the row of another kind for the row at `offset` of the prompt `number`."""
        found = self._numbers.next(number + 1, kind)
        if found is None:
            return None
        prompt = self._prompts[found]
        start = offset + 1 if found == number else min(offset, len(prompt) - 1)
        place = self._rows[found].next(start, kind)
        return None if place is None else prompt[place]


class _Circle:
    """Places in a circle, each of a kind."""

    def __init__(self, held: Sequence[tuple[int, _Kind]]) -> None:
        """Note, for each place, the next one of another kind.

        Args:
            held: Place and kind, sorted by place.
        """
        self._places = [place for place, _ in held]
        self._kinds = [kind for _, kind in held]
        count = len(held)
        self._following: list[int | None] = [None] * count
        for turn in reversed(
            range(2 * count - 1)
        ):  # Twice round: the end goes on at the beginning.
            here, there = turn % count, (turn + 1) % count
            same = self._kinds[here] == self._kinds[there]
            self._following[here] = self._following[there] if same else there

    def next(self, place: int, kind: _Kind) -> int | None:
        """Return the first place, from `place` on and round, of another kind; ``None`` if none."""
        if not self._places:
            return None
        at: int | None = bisect_left(self._places, place) % len(self._places)
        if self._kinds[at] == kind:
            at = self._following[at]
        return None if at is None else self._places[at]
