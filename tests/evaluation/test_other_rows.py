"""The other row of each row: the one that a search in turn finds, in linear time."""

import random
import sys

import pytest
import torch

from nnsight_nla.core.injection import unusable
from nnsight_nla.evaluation.other_rows import other_rows

D = 4


def in_turn(prompts, vectors, number, offset):
    """The definition: the rows of the next prompts from the same place on, then of this one."""
    row, order = prompts[number][offset], []
    for step in range(1, len(prompts)):
        prompt = prompts[(number + step) % len(prompts)]
        place = min(offset, len(prompt) - 1)
        order += [*prompt[place:], *prompt[:place]]
    order += [*prompts[number][offset + 1 :], *prompts[number][:offset]]
    for other in order:
        same = len(vectors[other]) == len(vectors[row])
        if same and not torch.equal(vectors[other], vectors[row]) and not unusable(vectors[other]):
            return other
    return None


def drawn(rng):
    """Some prompts of a few different vectors, of which some cannot be written."""
    prompts, vectors = [], []
    values = [-1.0, 1.0, 0.0, -0.0, float("nan")][: rng.randint(1, 5)]
    for _ in range(rng.randint(1, 6)):
        count = rng.randint(1, 5)
        prompts.append(list(range(len(vectors), len(vectors) + count)))
        vectors += [
            torch.full((rng.choice([1, 1, 1, 2]), D), rng.choice(values), dtype=torch.float32)
            for _ in range(count)
        ]
    return prompts, vectors


def test_it_is_the_first_in_turn():
    rng, found, none = random.Random(0), 0, 0
    for _ in range(250):
        prompts, vectors = drawn(rng)
        rows = [row for row in range(len(vectors)) if rng.random() < 0.8]
        expected = {
            row: in_turn(prompts, vectors, number, offset)
            for number, prompt in enumerate(prompts)
            for offset, row in enumerate(prompt)
            if row in rows
        }
        got = other_rows(prompts, vectors, rows)
        assert got == {row: other for row, other in expected.items() if other is not None}
        found, none = found + len(got), none + len(expected) - len(got)
    assert min(found, none) > 200


def work(prompts, vectors) -> int:
    """How many calls of Python functions and of compiled ones a choice takes."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        other_rows(prompts, vectors, range(len(vectors)))
    finally:
        sys.setprofile(before)
    return calls


@pytest.mark.parametrize("layout", ["one prompt", "a prompt for each row", "prompts of eight"])
@pytest.mark.parametrize("different", [0, 1])
def test_equal_vectors_take_linear_work(layout, different):
    def counted(rows):
        size = {"one prompt": rows, "a prompt for each row": 1, "prompts of eight": 8}[layout]
        prompts = [list(range(start, start + size)) for start in range(0, rows, size)]
        vectors = [torch.ones(1, D, dtype=torch.float32)] * (rows - different)
        vectors += [torch.full((1, D), 2.0, dtype=torch.float32)] * different
        return work(prompts, vectors)

    small, large = counted(64), counted(256)
    assert small > 64
    assert large < 4.2 * small
