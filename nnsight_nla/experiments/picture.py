"""Draw a sweep: rows and their differences in, a plotly figure or HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..errors import ExperimentError, shown
from ..view.escaping import Html, html, readable, visible
from ..view.figure import INK, TEMPLATE
from ..view.table import chip, table
from .records import REACHES, Header, Outcome, Texts

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from ..evaluation.compare import Difference

Row = Mapping[str, Any]
"""A row of the table, as `Sweep.rows` has it."""
_LONGEST = 2000
_SYMBOLS = {"●": "circle", "–": "x-thin-open", "○": "circle-open", "?": "diamond-open"}
_LINE = '<div style="font:14px/1.5 system-ui,sans-serif;margin:.3rem 0">'


def heat_map(
    header: Header, rows: Sequence[Row], differences: Sequence[Difference], value: str
) -> go.Figure:
    """Draw layers (and heads) upwards, positions (and doses) to the right.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else.
    """
    import plotly.graph_objects as go

    _check(value)
    chosen = _first_of_each_cell(rows, differences)
    rows = [row for row, _ in chosen]
    across = list(dict.fromkeys(_across(row) for row in sorted(rows, key=_across_order)))
    upwards = list(dict.fromkeys(_upwards(row) for row in sorted(rows, key=_upwards_order)))
    blank: list[list[Any]] = [[None] * len(across) for _ in upwards]
    z, hover, mark = ([list(line) for line in blank] for _ in range(3))
    for row, difference in chosen:
        y, x = upwards.index(_upwards(row)), across.index(_across(row))
        z[y][x] = row["effect"] if value == "effect" else difference.change
        hover[y][x] = _hover(row, difference)
        mark[y][x] = _mark(row)
    most = max((abs(each) for line in z for each in line if each is not None), default=1.0) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=z,
            x=across,
            y=upwards,
            text=[
                [text if shade is not None else None for shade, text in zip(*line, strict=True)]
                for line in zip(z, mark, strict=True)
            ],
            texttemplate="%{text}",
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            # Blue and red meet at zero; what has no value stays blank.
            colorscale="RdBu_r" if value == "effect" else "Oranges",
            zmid=0 if value == "effect" else None,
            zmin=-most if value == "effect" else 0,
            zmax=most if value == "effect" else 1,
            colorbar={
                "title": {"text": _unit(header) if value == "effect" else "share of words changed"}
            },
            xgap=1,
            ygap=1,
        )
    )
    # Plotly picks a mark's colour by its cell's; where there is none, it takes the page for white.
    for y, line in zip(upwards, zip(z, mark, strict=True), strict=True):
        for x, shade, text in zip(across, *line, strict=True):
            if shade is None and text is not None:
                figure.add_annotation(x=x, y=y, text=text, showarrow=False)
    figure.update_layout(
        title={
            "text": f"{_title(header, rows)}"
            "<br><sup>● the text changed   – it could not   ○ it did not</sup>"
        },
        xaxis={"title": {"text": "position"}, "type": "category", "tickangle": -40},
        yaxis={"title": {"text": "block"}, "type": "category"},
        template=TEMPLATE,
        height=180 + 34 * max(len(upwards), 4),
    )
    return figure


def curves(
    header: Header, rows: Sequence[Row], differences: Sequence[Difference], value: str
) -> go.Figure:
    """Draw doses to the right, a line for each place; the random directions' in grey.

    Args:
        header: The header of the sweep.
        rows: Its rows.
        differences: The difference of each row.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else, or nothing was given in doses.
    """
    import plotly.graph_objects as go

    _check(value)
    chosen = [
        each for each in _first_of_each_cell(rows, differences) if each[0]["dose"] is not None
    ]
    if not chosen:
        raise ExperimentError(
            f"A sweep of {header.experiment!r} has no doses to draw curves of: plot()."
        )
    rows = [row for row, _ in chosen]
    lines: dict[str, list[tuple[Row, Difference]]] = {}
    for row, difference in chosen:
        place = f"block {_upwards(row)}, {_place(row)}"
        lines.setdefault(f"{place}: {row['kind']}", []).append((row, difference))
    figure = go.Figure()
    for name, line in lines.items():
        line.sort(key=lambda each: each[0]["dose"])
        random = line[0][0]["kind"].startswith("random")
        symbols = [_SYMBOLS[_mark(row)] for row, _ in line]
        figure.add_scatter(
            x=[row["dose"] for row, _ in line],
            y=[row["effect"] if value == "effect" else each.change for row, each in line],
            name=html(name),
            mode="lines+markers",
            line={"color": INK, "dash": "dot"} if random else {},
            marker={"size": 9, "symbol": symbols},
            customdata=[_hover(*each) for each in line],
            hovertemplate="%{customdata}<extra></extra>",
        )
    unit = _unit(header) if value == "effect" else "share of words changed"
    figure.update_layout(
        title={
            "text": f"{_title(header, rows)}"
            "<br><sup>● the text changed   ✕ it could not   ○ it did not</sup>"
        },
        xaxis={"title": {"text": "dose"}},
        yaxis={"title": {"text": unit}},
        template=TEMPLATE,
        height=420,
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
        f"{_LINE}<b>{html(header.experiment)}</b> of {html(header.target)}: {html(done)}; metric "
        f"{html(header.metric)}; explained: the output of block {html(header.k)}</div>",
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
                    _name(row),
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


def _check(value: str) -> None:
    if value not in ("effect", "change"):
        raise ExperimentError(f"plot(value={shown(value)}): expected 'effect' or 'change'.")


def _unit(header: Header) -> str:
    patch = header.experiment == "patch"
    return html("effect (corrupt 0, clean 1)" if patch else f"change of {header.metric}")


def _title(header: Header, rows: Sequence[Row]) -> str:
    at = ", ".join(dict.fromkeys(visible(row["explained_token"]) for row in rows))
    where = f"explained at block {header.k}" + (f", {at}" if len(at) < 40 else "")
    return html(f"{header.experiment}: {header.metric}; {where}")


def _first_of_each_cell(
    rows: Sequence[Row], differences: Sequence[Difference]
) -> list[tuple[Row, Difference]]:
    """Choose a row per cell: the first explained position that it can reach, or its first."""
    chosen: dict[tuple[str, str], tuple[Row, Difference]] = {}
    for row, difference in zip(rows, differences, strict=True):
        key = (_upwards(row), _across(row))
        old = chosen.get(key)
        if old is None or (old[0]["reach"] != REACHES and row["reach"] == REACHES):
            chosen[key] = (row, difference)
    return list(chosen.values())


def _mark(row: Row) -> str:
    if row["reach"] != REACHES:
        return "–"
    return {True: "●", False: "○", None: "?"}[row["text_changed"]]


def _upwards(row: Row) -> str:
    head = "" if row["head"] is None else f".{row['head']}"
    return html(f"{row['layer']}{head}")


def _upwards_order(row: Row) -> tuple[int, int]:
    return row["layer"], -1 if row["head"] is None else row["head"]


def _across(row: Row) -> str:
    place = "every" if row["position"] is None else f"{row['position']} {visible(row['token'])}"
    dose = "" if row["dose"] is None else f" × {row['dose']:g}"
    control = f" ({row['kind']})" if row["kind"].startswith("random") else ""
    return html(f"{place}{dose}{control}")


def _across_order(row: Row) -> tuple[Any, ...]:
    position = -1 if row["position"] is None else row["position"]
    control = row["kind"] if row["kind"].startswith("random") else ""
    return position, control, row["dose"] or 0.0


def _name(row: Row) -> str:
    dose = "" if row["dose"] is None else f", {row['kind']} × {row['dose']:g}"
    return f"{row['site']}, block {_upwards(row)}, {_place(row)}{dose}"


def _place(row: Row) -> str:
    if row["position"] is None:
        return "every position"
    return f"{visible(row['token'])}@{row['position']}"


def _hover(row: Row, difference: Difference) -> str:
    lines = [
        f"<b>{html(_name(row))}</b>",
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
        lines.append(f"cosine {difference.cosine:.3f}, words changed {difference.change:.0%}")
    return "<br>".join(lines)


def _texts(texts: Texts, run: Outcome) -> Html:
    said = [texts.of(vector) for vector in list(run.residuals.values())[:3]]
    shown = [each.text or f"[this vector {each.error}]" for each in said]
    lines = (html(readable(text, _LONGEST)).replace("\n", "<br>") for text in shown)
    return Html("<hr>".join(lines))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
