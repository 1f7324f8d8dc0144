"""Draw a sweep: rows and their differences in, a plotly figure or tables out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..view.escaping import Html, html, readable, visible
from ..view.figure import CHANGES, COLOURS, EFFECTS, MARKS, TEMPLATE, THIN, along, tinted, titled
from ..view.table import chip, table
from . import arrange
from .arrange import Point, Row, Value
from .records import REACHES, Header, Outcome, Texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..evaluation.compare import Difference

_LONGEST = 2000
_SYMBOLS = {
    arrange.CHANGED: "circle",
    arrange.UNREACHED: "x-thin-open",
    arrange.SAME: "circle-open",
    arrange.UNKNOWN: "diamond-open",
}
_LINE = '<div style="font:14px/1.5 system-ui,sans-serif;margin:.3rem 0">'
_HOVER = "%{customdata}<extra></extra>"


def heat_map(
    header: Header, rows: Sequence[Row], differences: Sequence[Difference], value: Value
) -> go.Figure:
    """Draw blocks upwards; heads, positions or doses to the right.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else.
    """
    import plotly.graph_objects as go

    grid = arrange.arrange(rows, differences, value)
    lines = [[grid.cells.get((up, right)) for right in grid.across] for up in grid.upwards]
    signed = value == "effect"
    figure = go.Figure(
        go.Heatmap(
            z=[[None if each is None else each.value for each in line] for line in lines],
            x=grid.across,
            y=grid.upwards,
            # Plotly writes "null" for a mark that is None.
            text=[
                ["" if each is None or each.value is None else each.mark for each in line]
                for line in lines
            ],
            texttemplate="%{text}",
            textfont=MARKS,
            customdata=[["" if each is None else _hover(each) for each in line] for line in lines],
            hovertemplate=_HOVER,
            colorscale=EFFECTS if signed else CHANGES,
            zmin=-grid.most if signed else 0,
            zmax=grid.most,
            colorbar={
                "title": {**along(arrange.unit(header, value)), "side": "right"},
                "tickformat": None if signed else ".0%",
                "thickness": THIN,
            },
            xgap=1,
            ygap=1,
        )
    )
    # Plotly writes no mark where there is no value.
    for (up, right), each in grid.cells.items():
        if each.value is None:
            figure.add_annotation(x=right, y=up, text=each.mark, showarrow=False)
    figure.update_layout(
        title=titled(
            arrange.title(header, rows), "● the text changed   – it could not   ○ it did not"
        ),
        xaxis={
            "title": {"text": grid.across_title},
            "type": "category",
            "tickangle": -40 if max(map(len, grid.across)) > 3 else 0,
            "showgrid": False,
        },
        yaxis={"title": {"text": "block"}, "type": "category", "showgrid": False},
        template=TEMPLATE,
        height=180 + 34 * max(len(grid.upwards), 6),
    )
    return figure


def curves(
    header: Header, rows: Sequence[Row], differences: Sequence[Difference], value: Value
) -> go.Figure:
    """Draw doses to the right, a line for each place; its random directions are one band.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else, or nothing was given in doses.
    """
    import plotly.graph_objects as go

    figure = go.Figure()
    for number, curve in enumerate(arrange.curves(header, rows, differences, value)):
        colour = COLOURS[number % len(COLOURS)]
        edges = [curve.low, curve.high] if curve.controls > 1 else [curve.low]
        for edge in edges if curve.controls else []:
            figure.add_scatter(
                **_points(edge),
                name=curve.controls_name,
                legendgroup=curve.controls_name,
                showlegend=edge is edges[0],
                mode="lines",
                line={"color": colour, "width": 1, "dash": "dot"},
                fill="none" if edge is curve.low else "tonexty",
                fillcolor=tinted(colour, 0.18),
            )
        figure.add_scatter(
            **_points(curve.points),
            name=html(f"{curve.place}: steer"),
            mode="lines+markers",
            line={"color": colour},
            marker={"size": 9, "symbol": [_SYMBOLS[each.mark] for each in curve.points]},
        )
    figure.update_layout(
        title=titled(
            arrange.title(header, rows), "● the text changed   ✕ it could not   ○ it did not"
        ),
        xaxis={"title": {"text": "dose"}},
        yaxis={
            "title": along(arrange.unit(header, value)),
            "tickformat": ".0%" if value == "change" else None,
        },
        template=TEMPLATE,
        height=460,
    )
    return figure


def summary(
    header: Header,
    runs: Mapping[str, Outcome],
    texts: Texts,
    done: str,
    largest: Sequence[tuple[Row, Difference]],
    count: int,
) -> str:
    """Return a summary, the runs without an intervention, and the rows with the largest effects.

    Args:
        header: The header of the sweep.
        runs: The runs without an intervention, by name.
        texts: The texts of the sweep.
        done: How many of the cells were run, in words.
        largest: The rows to show.
        count: How many rows there are.
    """
    lines = [
        f"{_LINE}<b>{html(header.experiment)}</b> of {html(_model(header.target))}: {html(done)}; "
        f"metric {html(header.metric)}; explained: the output of block {html(header.k)}</div>",
        table(
            ("run", "metric", "answer", "explanation"),
            [
                [name, _number(run.metric), chip(run.answer), _texts(texts, run)]
                for name, run in runs.items()
            ],
        ),
        table(
            ("where", "effect", "answer", "explanation, before to after"),
            [
                [
                    arrange.name(row),
                    _number(row["effect"]),
                    chip(row["answer"]),
                    difference.to_html()
                    if row["reach"] == REACHES
                    else Html(f"<em>{html(row['reach'])}</em>"),
                ]
                for row, difference in largest
            ],
        ),
    ]
    if count > len(largest):
        lines.append(
            f"{_LINE}the {len(largest)} largest effects of {count} rows; .to_pandas() has all</div>"
        )
    return "".join(lines)


def _points(points: Sequence[Point]) -> dict[str, Any]:
    return {
        "x": [each.row["dose"] for each in points],
        "y": [each.value for each in points],
        "customdata": [_hover(each) for each in points],
        "hovertemplate": _HOVER,
    }


def _hover(point: Point) -> str:
    row, difference = point.row, point.difference
    lines = [
        f"<b>{html(arrange.name(row))}</b>",
        f"effect {_number(row['effect'])}, predicts {html(visible(row['answer']))}",
    ]
    if row["reach"] != REACHES:
        return "<br>".join([*lines, html(f"explanation: {row['reach']}")])
    if row["error"]:
        return "<br>".join([*lines, html(row["error"])])
    for name in ("before", "after"):
        shown = readable(row[name], _LONGEST).splitlines()
        text = (each for line in shown for each in wrap(line, 70))
        lines.append(f"<i>{name}</i><br>" + "<br>".join(map(html, text)))
    if difference.cosine is not None:
        lines.append(f"cosine {difference.cosine:z.3f}, words changed {difference.change:.0%}")
    return "<br>".join(lines)


def _model(name: str) -> str:
    """Return a model's name; of a local folder, its last part, since pages are sent to others."""
    path = Path(name)
    return path.name if path.is_absolute() else name


def _texts(texts: Texts, run: Outcome) -> Html:
    said = [texts.of(vector) for vector in list(run.residuals.values())[:3]]
    shown = [each.text or f"[this vector {each.error}]" for each in said]
    lines = (html(readable(text, _LONGEST)).replace("\n", "<br>") for text in shown)
    return Html("<hr>".join(lines))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:z.3f}"
