"""Other positions and other documents, fixed by seed and row."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from nnsight_nla.evaluation.grounding.candidates import documents, positions
from nnsight_nla.evaluation.grounding.rows import GroundedRow, GroundedRows


def rows_of(*texts: list[str]) -> GroundedRows:
    """One document for each list of texts."""
    rows = [GroundedRow(f"d{d}", text) for d, found in enumerate(texts) for text in found]
    return GroundedRows(tuple(rows), torch.zeros(len(rows), 2))


def document(name: str, length: int) -> list[str]:
    return [name + "." * n for n in range(1, length + 1)]


def test_positions_are_different_rows_of_the_document_with_the_own_one():
    source = rows_of(document("a", 23), document("b", 9))
    for number in range(len(source)):
        chosen = positions(source, number, seed=0)
        assert number in chosen
        assert len(set(chosen)) == 5
        assert {source.rows[each].document for each in chosen} == {source.rows[number].document}


def test_positions_are_spread_over_the_document():
    source = rows_of(document("a", 50))
    for number in range(50):
        ordered = sorted(positions(source, number, seed=0))
        assert all(after - before == 10 for before, after in pairwise(ordered))


def test_each_row_is_as_often_among_the_wrong_positions():
    source = rows_of(document("a", 13))
    shown = Counter(each for n in range(13) for each in positions(source, n, seed=0))
    assert set(shown.values()) == {5}


def test_the_own_row_stands_in_each_place():
    source = rows_of(document("a", 300))
    places = Counter(positions(source, n, seed=0).index(n) for n in range(300))
    assert all(35 <= places[place] <= 90 for place in range(5))


def test_a_document_with_fewer_texts_than_positions_has_no_candidates():
    source = rows_of(document("a", 4), ["same"] * 9)
    assert positions(source, 0, seed=0) is None
    assert positions(source, 6, seed=0) is None
    assert len(positions(source, 0, seed=0, count=4)) == 4


def test_a_repeated_text_stands_once_and_as_the_own_row():
    source = rows_of(["a", "ab", "ab", "abc", "abcd", "abcde"])
    assert sorted(positions(source, 1, seed=0)) == [0, 1, 3, 4, 5]
    assert sorted(positions(source, 2, seed=0)) == [0, 2, 3, 4, 5]


def test_documents_are_different_ones_with_the_own_one():
    source = rows_of(*(document(name, 5) for name in "abcdefg"))
    for number in range(len(source)):
        chosen = documents(source, number, seed=0)
        assert number in chosen
        assert len({source.rows[each].document for each in chosen}) == len(chosen) == 4


def test_documents_with_the_same_text_are_not_set_against_each_other():
    source = rows_of(["The"], ["The"], ["A"], ["An"], ["One"])
    assert sorted(documents(source, 0, seed=0)) == [0, 2, 3, 4]
    assert documents(rows_of(["The"], ["The"], ["A"], ["An"]), 0, seed=0) is None


@pytest.mark.parametrize("choose", [positions, documents])
def test_the_choice_depends_on_seed_and_row_only(choose):
    source = rows_of(*(document(name, 12) for name in "abcdef"))
    first = [choose(source, n, 7) for n in range(len(source))]
    backwards = [choose(source, n, 7) for n in reversed(range(len(source)))]
    assert first == backwards[::-1]
    assert first != [choose(source, n, 8) for n in range(len(source))]
