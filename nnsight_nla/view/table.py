"""Tables for notebooks, with inline styles only, so that they look the same everywhere.

Text and background keep the notebook's colours, light or dark; every value is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .escaping import Html, html, readable, visible

_STYLE = (
    "border-collapse:collapse;font:14px/1.5 system-ui,sans-serif;text-align:left;max-width:60rem"
)
_CELL = "padding:.45rem .8rem;border-top:1px solid #8884;vertical-align:top;text-align:left"
_HEAD = f"{_CELL};border-top:0;font-weight:600;font-size:12px;opacity:.65"
_CHIP = (
    "font:13px/1.5 ui-monospace,monospace;padding:.1em .35em;border-radius:4px;"
    "background:#6366f126;white-space:pre-wrap"
)
_NOTE = "opacity:.75;font-size:12px;margin-top:.2rem"
_CLAIM = "padding:.3rem .8rem;border-top:1px solid #8884;vertical-align:top;text-align:left"
_LONGEST = 20_000
_CARRIES, _HARMS = "#0d9488", "#b91c1c"


def explanation(records: Sequence[Mapping[str, Any]], *, page: bool = False) -> Html:
    """Return a table with a row per explanation: the token, its position, the text, warnings.

    Args:
        records: The handle's.
        page: Whether it is a page of its own, which others may read: a row then has its index in
            the handle beside its position, and invisible characters are escaped.
    """
    placed = any(
        record["token"] is not None or record["position"] is not None for record in records
    )
    numbered = page and any(record["index"] for record in records)
    rows: list[list[str]] = []
    for record in records:
        place = [html(record["position"]), chip(record["token"])] if placed else []
        if numbered or not placed:
            place.insert(0, html(", ".join(map(str, record["index"]))))
        rows.append([*place, _body(record, _shown if page else str)])
    head = ["position", "token"] if placed else []
    if numbered or not placed:
        head.insert(0, "index")
    return table((*head, "explanation"), rows)


def facts(given: Mapping[str, str]) -> Html:
    """Return a table with a row per fact: its name and what it is."""
    rows = [[name, readable(value, 500)] for name, value in given.items()]
    return table(("", ""), rows, heading=_CLAIM, cell=_CLAIM)


def claims(record: Mapping[str, Any]) -> str:
    """Return a table with a row per part of an explanation: its figures, a bar, the text."""
    parts = record["parts"]
    most = max([abs(part["carries"]) for part in parts], default=0.0) or 1.0
    rows: list[list[str]] = []
    for part in parts:
        figures = f"{part['carries']:+z.3f}", _bar(part["carries"], most), f"{part['alone']:z.3f}"
        rows.append([*figures, part["text"]])
    caption = f"cosine {record['cosine']:z.3f}; change without each part"
    head = ("carries", "", "alone", "part")
    return table(head, rows, caption=caption, heading=_CLAIM, cell=_CLAIM)


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    heading: str = _HEAD,
    cell: str = _CELL,
) -> Html:
    """Return a table in the package's style.

    Args:
        head: The columns' names.
        rows: The cells; what is not `Html` is escaped.
        caption: Above the table.
        heading: The style of the columns' names.
        cell: The style of the cells.
    """
    above = (
        f'<caption style="text-align:left;opacity:.75">{html(caption)}</caption>' if caption else ""
    )
    names = "".join(f'<th scope="col" style="{heading}">{html(name)}</th>' for name in head)
    body = "".join(
        "<tr>"
        + "".join(f'<td dir="auto" style="{cell}">{html(each)}</td>' for each in row)
        + "</tr>"
        for row in rows
    )
    header = f"{above}<thead><tr>{names}</tr></thead>"
    return Html(f'<table style="{_STYLE}">{header}<tbody>{body}</tbody></table>')


def chip(token: str | None) -> Html:
    """Return a token on a tinted background, its white space visible; empty for ``None``."""
    return Html("" if token is None else f'<code style="{_CHIP}">{html(visible(token))}</code>')


def _bar(carries: float, most: float) -> Html:
    colour = _CARRIES if round(carries, 3) > 0 else _HARMS
    return Html(
        '<div style="width:8rem;background:#8883;height:.8em;margin-top:.35em">'
        f'<div style="width:{100 * abs(carries) / most:.0f}%;background:{colour};height:100%">'
        "</div></div>"
    )


def _shown(text: str) -> str:
    return readable(text, _LONGEST)


def _body(record: Mapping[str, Any], shown: Callable[[str], str]) -> Html:
    if record["error"] is not None:
        return Html(f"<em>no text: this vector {html(shown(record['error']))}</em>")
    text = "<br>".join(map(html, shown(record["text"]).splitlines()))
    notes = "".join(
        f'<div style="{_NOTE}">\u26a0 {html(shown(note))}</div>' for note in record["warnings"]
    )
    label, line = record.get("label"), record.get("trust")
    lines = label["lines"] if label is not None else [] if line is None else [line]
    trust = "".join(f'<div style="{_NOTE}">{html(shown(line))}</div>' for line in lines)
    return Html(text + trust + notes)
