"""Positions: two prompts aligned, and what ``positions=`` and ``explain_at=`` may be."""

import pytest

from nnsight_nla import NLAError
from nnsight_nla.experiments.positions import align, explained, listed, pairs
from nnsight_nla.experiments.records import Cell

PARIS, YORK = ("People", " in", " Paris", " speak"), ("People", " in", " New", " York", " speak")


class TestAlignment:
    def test_prompts_of_one_length_align_position_by_position(self):
        assert align([1, 2, 3], [4, 5, 6]).source == {0: 0, 1: 1, 2: 2}

    @pytest.mark.parametrize(
        ("clean", "corrupt", "source"),
        [
            ([1, 2, 3, 4], [1, 2, 8, 9, 4], {0: 0, 1: 1, 4: 3}),
            ([1, 2, 8, 9, 4], [1, 2, 3, 4], {0: 0, 1: 1, 3: 4}),
            ([1, 2], [1, 1, 2], {0: 0, 2: 1}),
            ([5, 1, 2], [1, 2], {0: 1, 1: 2}),
            ([1, 2], [1, 2, 3], {0: 0, 1: 1}),
            ([1], [2, 3], {}),
            ([7, 7, 7], [7, 7], {0: 0, 1: 1}),
        ],
    )
    def test_unequal_prompts_align_at_both_ends(self, clean, corrupt, source):
        found = align(clean, corrupt)
        assert found.source == source
        assert all(clean[a] == corrupt[b] for b, a in source.items())
        assert len(set(source.values())) == len(source)
        assert len(found.clean) + len(source) == len(clean)
        assert len(found.corrupt) + len(source) == len(corrupt)

    def test_a_position_without_a_counterpart_is_refused_by_name(self):
        alignment = align([0, 1, 2, 3], [0, 1, 4, 5, 3])
        with pytest.raises(NLAError) as caught:
            pairs("all", PARIS, YORK, alignment)
        message = str(caught.value)
        assert "Position 2 (' New') has no counterpart" in message
        assert "[' Paris'] where the corrupt one has [' New', ' York']" in message
        assert 'positions="aligned"' in message
        assert "(2, 3)" in message

    def test_what_to_type_next_works(self):
        alignment = align([0, 1, 2, 3], [0, 1, 4, 5, 3])
        assert pairs("aligned", PARIS, YORK, alignment) == [(0, 0), (1, 1), (3, 4)]
        assert pairs([(2, 3), -1], PARIS, YORK, alignment) == [(2, 3), (3, 4)]
        assert pairs([(-2, -2)], PARIS, YORK, alignment) == [(2, 3)]
        assert pairs([0, -5, 0], PARIS, YORK, alignment) == [(0, 0)]

    @pytest.mark.parametrize("bad", [5, -6, [0, 9], "every", [], None, 1.5, [True], [(0, 9)]])
    def test_positions_that_do_not_fit(self, bad):
        alignment = align([0, 1, 2, 3], [0, 1, 2, 3, 3])
        with pytest.raises(NLAError, match=r"positions 0 to|Expected a position|is not a position"):
            pairs(bad, PARIS, YORK, alignment)

    def test_listed(self):
        assert listed("all", 3) == [0, 1, 2]
        assert listed(range(2), 3) == [0, 1]
        with pytest.raises(NLAError, match="is not a position"):
            listed([(0, 1)], 3)


class TestExplained:
    def test_what_may_be_asked_for(self):
        cell = Cell("residual", 0, None, 1)
        assert explained(-1, 4).of(cell) == [3]
        assert explained("patched", 4).of(cell) == [1]
        assert explained(["patched", 3, -1], 4).of(cell) == [3, 1]
        assert explained("patched", 4).of(Cell("residual", 0, None, None)) == []

    @pytest.mark.parametrize("bad", ["last", [], 4, -5, None, ["patched", "x"], 1.0])
    def test_what_may_not(self, bad):
        with pytest.raises(NLAError, match=r"explain_at=|positions 0 to 3|is not a position"):
            explained(bad, 4)
