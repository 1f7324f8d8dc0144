"""Write a sweep as a page: one HTML file of less than a megabyte, without a script.

The page has what `Sweep.plot` draws, and the summary that a notebook shows. The texts of a cell
are shown while the pointer or the keyboard is on it, or after a tap. Where a sweep has more texts
than fit in `LARGEST`, the cells with the smallest values go without, and the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..view.chart import STYLE, Cell, Dot, Line, curves, heat_map
from ..view.escaping import Html, html, visible
from ..view.page import document
from . import arrange
from .arrange import CHANGED, Grid, Point, Row, Value
from .records import REACHES, Header

if TYPE_CHECKING:
    from ..evaluation.compare import Difference

LARGEST = 900_000
"""The most bytes of a heat map, texts included, where a page has to be below a megabyte."""
_BARE = 45
"""The bytes of a cell without a text."""


def page(
    header: Header,
    rows: Sequence[Row],
    differences: Sequence[Difference],
    value: Value,
    summary: str,
    title: str = "",
) -> str:
    """Return the page of a sweep.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: ``"effect"`` or ``"change"``.
        summary: The tables below the heat map.
        title: The title; by default what the sweep measures.

    Raises:
        ExperimentError: `value` is something else.
    """
    grid = arrange.arrange(rows, differences, value)
    details = _details(grid)
    signed = value == "effect"
    parts: list[Html] = [STYLE]
    if len(details) < len(grid.cells):
        parts.append(
            Html(
                f"<p>Texts are shown of the {len(details):,} cells with the largest values, of "
                f"{len(grid.cells):,}; sweep.to_pandas() has all.</p>"
            )
        )
    parts.append(
        heat_map(
            grid.upwards,
            grid.across,
            {
                where: Cell(
                    None if each.value is None else each.value / grid.most,
                    each.mark,
                    details.get(where, Html("")),
                )
                for where, each in grid.cells.items()
            },
            titles=("block", grid.across_title),
            caption=f"{arrange.unit(header, value)}. ● the text changed, – it could not, ○ it did "
            "not. Point at a cell or tap it to read its texts.",
            most=f"{grid.most:.3g}" if signed else f"{grid.most:.0%}",
            signed=signed,
        )
    )
    if arrange.has_doses(rows):
        drawn = [_line(each) for each in arrange.curves(header, rows, differences, value)]
        parts.append(curves(drawn, titles=("dose", arrange.unit(header, value))))
    return document(title or arrange.title(header, rows), *parts, Html(summary))


def _details(grid: Grid) -> dict[tuple[Html, Html], Html]:
    """Return what is said about each cell, of the largest values as far as there is room."""
    room = LARGEST - _BARE * len(grid.upwards) * len(grid.across)
    found: dict[tuple[Html, Html], Html] = {}
    largest = sorted(grid.cells.items(), key=lambda item: -round(abs(item[1].value or 0.0), 3))
    for where, point in largest:
        text = _said(point)
        room -= len(text.encode())
        if room < 0:
            break
        found[where] = text
    return found


def _said(point: Point) -> Html:
    row, difference = point.row, point.difference
    effect = "none" if row["effect"] is None else f"{row['effect']:z.3f}"
    lines = [
        f"<b>{html(arrange.name(row))}</b>",
        f"effect {effect}, predicts {html(visible(row['answer']))}",
    ]
    if row["reach"] != REACHES:
        lines.append(f"explanation: {html(row['reach'])}")
    elif row["error"]:
        lines.append(str(html(row["error"])))
    else:
        if difference.cosine is not None and difference.change is not None:
            lines.append(f"cosine {difference.cosine:z.3f}, words changed {difference.change:.0%}")
        lines.append(difference.to_html())
    return Html("<br>".join(lines))


def _line(curve: arrange.Curve) -> Line:
    return Line(
        f"{curve.place}: steer",
        _dots(curve.points),
        _dots(curve.low),
        _dots(curve.high),
        curve.controls_name,
    )


def _dots(points: Sequence[Point]) -> list[Dot]:
    return [
        Dot(
            each.row["dose"],
            each.value,
            each.mark == CHANGED,
            f"{arrange.name(each.row)}: {each.value:z.3f}",
        )
        for each in points
        if each.value is not None
    ]
