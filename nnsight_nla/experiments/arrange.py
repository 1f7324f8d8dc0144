"""Arrange the rows of a sweep for a picture: the cells of a heat map, or curves over doses.

Heat maps have blocks upwards; heads, positions or doses to the right::

    grid = arrange(rows, differences, "effect")
    grid.cells[grid.upwards[0], grid.across[0]].value
    curves(rows, differences, "effect")[0].points

All labels are escaped for HTML.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ExperimentError, shown
from ..view.escaping import Html, html, visible
from .records import REACHES, Header

if TYPE_CHECKING:
    from ..evaluation.compare import Difference

Row = Mapping[str, Any]
"""A row of the table, as `Sweep.rows` has it."""
Value = Literal["effect", "change"]
"""What is drawn: the effect on the metric, or the share of the explanation's words that changed."""
CHANGED, SAME, UNREACHED, UNKNOWN = "●", "○", "–", "?"


@dataclass(frozen=True)
class Point:
    """One cell of a sweep, at the explained position that stands for it."""

    row: Row
    """Its row of the table."""
    difference: Difference
    """What it changed."""
    value: float | None
    """The number that is drawn; ``None`` where there is none."""

    @property
    def mark(self) -> str:
        """Whether the text changed: yes, no, it could not, or it is not known."""
        if self.row["reach"] != REACHES:
            return UNREACHED
        return {True: CHANGED, False: SAME, None: UNKNOWN}[self.row["text_changed"]]


@dataclass(frozen=True)
class Grid:
    """A heat map: labels, and a point for each cell that was run."""

    upwards: tuple[Html, ...]
    """The blocks, from the lowest."""
    across: tuple[Html, ...]
    """Heads, positions, or doses, from the left."""
    across_title: Html
    """What they are."""
    cells: Mapping[tuple[Html, Html], Point]
    """By block and label."""

    @property
    def most(self) -> float:
        """The largest value without its sign; 1 where there is none."""
        values = [abs(each.value) for each in self.cells.values() if each.value is not None]
        return max(values, default=1.0) or 1.0


@dataclass(frozen=True)
class Curve:
    """The values over the doses at one place, and those of the random directions there."""

    place: Html
    """The block and the position."""
    points: tuple[Point, ...]
    """Of the vector itself, by dose."""
    low: tuple[Point, ...]
    """Of the random directions, the one with the smallest value at each dose."""
    high: tuple[Point, ...]
    """The one with the largest."""
    controls: int
    """How many random directions there are."""

    @property
    def controls_name(self) -> Html:
        """The random directions in words."""
        if self.controls == 1:
            return Html(f"{self.place}: a random direction")
        return Html(f"{self.place}: {self.controls} random directions, min to max")


def arrange(rows: Sequence[Row], differences: Sequence[Difference], value: object) -> Grid:
    """Arrange rows as a heat map.

    Args:
        rows: The rows of a sweep.
        differences: The difference of each row.
        value: A `Value`.

    Raises:
        ExperimentError: It is another value.
    """
    points = sorted(_points(rows, differences, value), key=_across_order)
    places = {_place_and_dose(each.row) for each in points}
    only = places.pop() if len(places) == 1 else None
    heads = any(each.row["head"] is not None for each in points)
    title = Html("position")
    if heads:
        title = Html("head" if only is None else f"head, at {only}")
    labels = {id(each): _across(each.row, alone=only is not None) for each in points}
    layers = sorted({each.row["layer"] for each in points})
    return Grid(
        tuple(html(layer) for layer in layers),
        tuple(dict.fromkeys(labels[id(each)] for each in points)),
        title,
        {(html(each.row["layer"]), labels[id(each)]): each for each in points},
    )


def curves(
    header: Header, rows: Sequence[Row], differences: Sequence[Difference], value: object
) -> list[Curve]:
    """Arrange rows as curves over doses, one for each place.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: A `Value`.

    Raises:
        ExperimentError: It is another value, or nothing was given in doses.
    """
    dosed = [each for each in _points(rows, differences, value) if each.row["dose"] is not None]
    if not dosed:
        raise ExperimentError(
            f"A sweep of {header.experiment!r} has no doses to draw curves of: plot()."
        )
    by_place: dict[Html, list[Point]] = {}
    for each in sorted(dosed, key=lambda point: point.row["dose"]):
        by_place.setdefault(html(f"{_block(each.row)}, {place(each.row)}"), []).append(each)
    return [_curve(name, points) for name, points in by_place.items()]


def has_doses(rows: Iterable[Row]) -> bool:
    """Return whether something was given in doses, so that there are curves."""
    return any(row["dose"] is not None for row in rows)


def place(row: Row) -> str:
    """Return where a row writes, in words."""
    if row["position"] is None:
        return "every position"
    return f"{visible(row['token'])}@{row['position']}"


def name(row: Row) -> str:
    """Return the cell of a row in words: site, block, position, dose."""
    dose = "" if row["dose"] is None else f", {row['kind']} × {row['dose']:g}"
    return f"{row['site']}, {_block(row)}, {place(row)}{dose}"


def unit(header: Header, value: Value) -> str:
    """Return what a value is."""
    if value == "change":
        return "share of words changed"
    patch = header.experiment == "patch"
    return "effect (corrupt 0, clean 1)" if patch else f"change of {header.metric}"


def title(header: Header, rows: Sequence[Row]) -> str:
    """Return the title of a picture."""
    at = ", ".join(dict.fromkeys(visible(row["explained_token"]) for row in rows))
    where = f"explained at block {header.k}" + (f", {at}" if len(at) < 40 else "")
    return f"{header.experiment}: {header.metric}; {where}"


def _points(rows: Sequence[Row], differences: Sequence[Difference], value: object) -> list[Point]:
    """Choose a row for each cell: the first explained position that it can reach, or its first."""
    if value not in ("effect", "change"):
        raise ExperimentError(f"plot(value={shown(value)}): expected 'effect' or 'change'.")
    chosen: dict[tuple[Any, ...], Point] = {}
    for row, difference in zip(rows, differences, strict=True):
        key = tuple(row[column] for column in ("layer", "head", "position", "kind", "dose"))
        old = chosen.get(key)
        if old is None or (old.row["reach"] != REACHES and row["reach"] == REACHES):
            number = row["effect"] if value == "effect" else difference.change
            chosen[key] = Point(row, difference, number)
    return list(chosen.values())


def _curve(place: Html, points: Sequence[Point]) -> Curve:
    random = [each for each in points if _is_random(each.row) and each.value is not None]
    doses = list(dict.fromkeys(each.row["dose"] for each in random))
    each_dose = [[point for point in random if point.row["dose"] == dose] for dose in doses]

    def value(point: Point) -> float:
        return point.value or 0.0

    return Curve(
        place,
        tuple(each for each in points if not _is_random(each.row)),
        tuple(min(some, key=value) for some in each_dose),
        tuple(max(some, key=value) for some in each_dose),
        len({each.row["kind"] for each in random}),
    )


def _is_random(row: Row) -> bool:
    return row["kind"].startswith("random")


def _block(row: Row) -> str:
    head = "" if row["head"] is None else f", head {row['head']}"
    return f"block {row['layer']}{head}"


def _place_and_dose(row: Row) -> Html:
    at = "every" if row["position"] is None else f"{row['position']} {visible(row['token'])}"
    dose = "" if row["dose"] is None else f" × {row['dose']:g}"
    control = f" ({row['kind']})" if _is_random(row) else ""
    return html(f"{at}{dose}{control}")


def _across(row: Row, *, alone: bool) -> Html:
    if row["head"] is None:
        return _place_and_dose(row)
    return html(row["head"]) if alone else Html(f"{_place_and_dose(row)}, head {row['head']}")


def _across_order(point: Point) -> tuple[Any, ...]:
    row = point.row
    position = -1 if row["position"] is None else row["position"]
    control = row["kind"] if _is_random(row) else ""
    head = -1 if row["head"] is None else row["head"]
    return position, len(control), control, row["dose"] or 0.0, head
