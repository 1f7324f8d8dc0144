"""The rows of a sweep arranged for a picture: cells, and curves with their band."""

import pytest

from nnsight_nla.experiments import ExperimentError, arrange
from tests.experiments.test_sweep import by_hand, dosed, heads


def arranged(sweep, value="effect"):
    rows = sweep.rows()
    return arrange.arrange(rows, sweep.compared(rows, distances=False), value)


def curves(sweep, value="effect"):
    rows = sweep.rows()
    return arrange.curves(sweep.header, rows, sweep.compared(rows, distances=False), value)


def test_blocks_upwards_and_positions_to_the_right():
    grid = arranged(by_hand())
    assert grid.upwards == ("0", "1", "2", "4")
    assert grid.across == ("1 ␣b", "2 ␣c", "3 &lt;i&gt;")
    assert grid.across_title == "position"
    assert [grid.cells[up, "3 &lt;i&gt;"].mark for up in "24"] == ["?", "–"]
    assert grid.cells["0", "1 ␣b"].value == 1.0
    assert ("1", "3 &lt;i&gt;") not in grid.cells


def test_the_scale_ends_at_the_largest_value():
    assert arranged(by_hand()).most == 1.0
    assert arranged(by_hand(), "change").most == pytest.approx(1 / 3)
    assert arranged(heads([3])).most == 12.0
    same = by_hand()
    same.outcomes = {cell: same.outcomes[cell] for cell in same.cells[2:4]}
    assert arranged(same, "change").most == 1.0, "where nothing changed, zero is no share of zero"


def test_a_head_is_a_column_and_its_block_a_row():
    one, two = arranged(heads([3])), arranged(heads([2, 3]))
    assert (one.upwards, one.across) == (("0", "1"), ("0", "1", "2"))
    assert one.across_title == "head, at 3 &lt;i&gt;"
    assert two.across_title == "head"
    assert len(two.across) == 6
    assert len(two.cells) == 12
    assert one.cells["1", "2"].value == two.cells["1", "3 &lt;i&gt;, head 2"].value == 12.0
    assert arrange.name(one.cells["1", "2"].row) == "head, block 1, head 2, <i>@3"


def test_a_band_goes_from_the_smallest_random_direction_to_the_largest():
    (curve,) = curves(dosed())
    assert curve.place == "block 1, ␣c@2"
    assert [each.value for each in curve.points] == [1.0, 2.0]
    assert [each.value for each in curve.low] == [-0.5, -3.0]
    assert [each.value for each in curve.high] == [0.25, 4.0]
    assert [each.row["kind"] for each in curve.high] == ["random 0", "random 2"]
    assert curve.controls == 3
    assert curve.controls_name == "block 1, ␣c@2: 3 random directions, min to max"
    (curve,) = curves(dosed(), "change")
    assert [each.value for each in curve.points] == [0.0, pytest.approx(1 / 3)]


def test_without_doses_there_are_no_curves():
    assert not arrange.has_doses(by_hand().rows())
    assert arrange.has_doses(dosed().rows())
    with pytest.raises(ExperimentError, match="no doses to draw curves of"):
        curves(by_hand())
