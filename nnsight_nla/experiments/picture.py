"""A sweep as a picture and as a page: plain records in, plotly or HTML out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..view.escaping import readable, visible
from ..view.figure import INK, TEMPLATE
from ..view.table import chip, table
from .errors import ExperimentError
from .reachability import REACHES

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .sweep import Sweep

_SHOWN = 12
_LONGEST = 2000
_SYMBOLS = {"●": "circle", "–": "x-thin-open", "○": "circle-open", "?": "diamond-open"}
_LINE = '<div style="font:14px/1.5 system-ui,sans-serif;margin:.3rem 0">'


def heat_map(sweep: Sweep, value: str) -> go.Figure:
    """Layers (and heads) upwards, positions (and doses) to the right.

    Args:
        sweep: The table.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else.
    """
    import plotly.graph_objects as go

    _check(value)
    rows = _first_of_each_cell(sweep.rows())
    compared = sweep.compared(rows, distances=False)
    across = list(dict.fromkeys(_across(row) for row in sorted(rows, key=_across_order)))
    upwards = list(dict.fromkeys(_upwards(row) for row in sorted(rows, key=_upwards_order)))
    blank: list[list[Any]] = [[None] * len(across) for _ in upwards]
    z, hover, mark = ([list(line) for line in blank] for _ in range(3))
    for row, difference in zip(rows, compared, strict=True):
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
                "title": {"text": _unit(sweep) if value == "effect" else "share of words changed"}
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
            "text": f"{_title(sweep, rows)}"
            "<br><sup>● the text changed   – it could not   ○ it did not</sup>"
        },
        xaxis={"title": {"text": "position"}, "type": "category", "tickangle": -40},
        yaxis={"title": {"text": "block"}, "type": "category"},
        template=TEMPLATE,
        height=180 + 34 * max(len(upwards), 4),
    )
    return figure


def curves(sweep: Sweep, value: str) -> go.Figure:
    """Doses to the right, a line for each place; the random directions' in grey.

    Args:
        sweep: The table.
        value: ``"effect"`` or ``"change"``.

    Raises:
        ExperimentError: `value` is something else, or nothing was given in doses.
    """
    import plotly.graph_objects as go

    _check(value)
    rows = [row for row in _first_of_each_cell(sweep.rows()) if row["dose"] is not None]
    if not rows:
        raise ExperimentError(
            f"A sweep of {sweep.header.experiment!r} has no doses to draw curves of: plot()."
        )
    lines: dict[str, list[tuple[Any, Any]]] = {}
    compared = sweep.compared(rows, distances=False)
    for row, difference in zip(rows, compared, strict=True):
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
            name=escape(name),
            mode="lines+markers",
            line={"color": INK, "dash": "dot"} if random else {},
            marker={"size": 9, "symbol": symbols},
            customdata=[_hover(*each) for each in line],
            hovertemplate="%{customdata}<extra></extra>",
        )
    unit = _unit(sweep) if value == "effect" else "share of words changed"
    figure.update_layout(
        title={
            "text": f"{_title(sweep, rows)}"
            "<br><sup>● the text changed   ✕ it could not   ○ it did not</sup>"
        },
        xaxis={"title": {"text": "dose"}},
        yaxis={"title": {"text": unit}},
        template=TEMPLATE,
        height=420,
    )
    return figure


def html(sweep: Sweep) -> str:
    """A summary, the runs without an intervention, and the rows with the largest effects."""
    header, rows = sweep.header, sweep.rows()
    done = f"{len(sweep.outcomes)} of {len(sweep.cells)} cells"
    lines = [
        f"{_LINE}<b>{header.experiment}</b> of {escape(header.target)}: {done}; metric "
        f"{escape(header.metric)}; explained: the output of block {header.k}</div>",
        table(
            ("run", "metric", "answer", "explanation"),
            [
                [
                    name,
                    _number(run.metric),
                    chip(run.answer),
                    _texts(sweep, run),
                ]
                for name, run in sweep.runs.items()
            ],
        ),
    ]
    top = sorted(rows, key=lambda row: -abs(row["effect"] or 0.0))[:_SHOWN]
    differences = sweep.compared(top, distances=False)
    lines.append(
        table(
            ("where", "effect", "answer", "explanation, before to after"),
            [
                [
                    escape(_name(row)),
                    _number(row["effect"]),
                    chip(row["answer"]),
                    difference.to_html()
                    if row["reach"] == REACHES
                    else f"<em>{escape(row['reach'])}</em>",
                ]
                for row, difference in zip(top, differences, strict=True)
            ],
        )
    )
    if len(rows) > len(top):
        lines.append(
            f"{_LINE}the {len(top)} largest effects of {len(rows)} rows; .to_pandas() has all</div>"
        )
    return "".join(lines)


def _check(value: str) -> None:
    if value not in ("effect", "change"):
        raise ExperimentError(f"plot(value={value!r}): expected 'effect' or 'change'.")


def _unit(sweep: Sweep) -> str:
    patch = sweep.header.experiment == "patch"
    return "effect (corrupt 0, clean 1)" if patch else f"change of {sweep.header.metric}"


def _title(sweep: Sweep, rows: Sequence[Mapping[str, Any]]) -> str:
    at = ", ".join(dict.fromkeys(visible(row["explained_token"]) for row in rows))
    where = f"explained at block {sweep.header.k}" + (f", {at}" if len(at) < 40 else "")
    return f"{sweep.header.experiment}: {escape(sweep.header.metric)}; {escape(where)}"


def _first_of_each_cell(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a cell: that of the first explained position that it can reach, or its first."""
    chosen: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        key = (_upwards(row), _across(row))
        old = chosen.get(key)
        if old is None or (old["reach"] != REACHES and row["reach"] == REACHES):
            chosen[key] = row
    return list(chosen.values())


def _mark(row: Mapping[str, Any]) -> str:
    if row["reach"] != REACHES:
        return "–"
    return {True: "●", False: "○", None: "?"}[row["text_changed"]]


def _upwards(row: Mapping[str, Any]) -> str:
    return f"{row['layer']}" if row["head"] is None else f"{row['layer']}.{row['head']}"


def _upwards_order(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["layer"], -1 if row["head"] is None else row["head"]


def _across(row: Mapping[str, Any]) -> str:
    place = "every" if row["position"] is None else f"{row['position']} {visible(row['token'])}"
    dose = "" if row["dose"] is None else f" × {row['dose']:g}"
    control = f" ({row['kind']})" if row["kind"].startswith("random") else ""
    return f"{escape(place)}{dose}{control}"


def _across_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    position = -1 if row["position"] is None else row["position"]
    control = row["kind"] if row["kind"].startswith("random") else ""
    return position, control, row["dose"] or 0.0


def _name(row: Mapping[str, Any]) -> str:
    dose = "" if row["dose"] is None else f", {row['kind']} × {row['dose']:g}"
    return f"{row['site']}, block {_upwards(row)}, {_place(row)}{dose}"


def _place(row: Mapping[str, Any]) -> str:
    if row["position"] is None:
        return "every position"
    return f"{visible(row['token'])}@{row['position']}"


def _hover(row: Mapping[str, Any], difference: Any) -> str:
    lines = [
        f"<b>{escape(_name(row))}</b>",
        f"effect {_number(row['effect'])}, predicts {escape(visible(row['answer']))}",
    ]
    if row["reach"] != REACHES:
        return "<br>".join([*lines, f"explanation: {row['reach']}"])
    if row["error"]:
        return "<br>".join([*lines, escape(row["error"])])
    for name in ("before", "after"):
        shown = readable(row[name], _LONGEST).splitlines()
        text = (each for line in shown for each in wrap(line, 70))
        lines.append(f"<i>{name}</i><br>" + "<br>".join(map(escape, text)))
    if difference.cosine is not None:
        lines.append(f"cosine {difference.cosine:.3f}, words changed {difference.change:.0%}")
    return "<br>".join(lines)


def _texts(sweep: Sweep, run: Any) -> str:
    said = [(at, sweep.texts.of(vector)) for at, vector in list(run.residuals.items())[:3]]
    shown = [each.text or f"[this vector {each.error}]" for _, each in said]
    return "<hr>".join(escape(readable(text, _LONGEST)).replace("\n", "<br>") for text in shown)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
