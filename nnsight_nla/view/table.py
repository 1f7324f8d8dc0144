"""Tables for notebooks: inline styles only, so that they look the same wherever one is shown.

They take ink and paper from where they stand, light or dark, and their few colours from the reading
page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .escaping import visible

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


def explanation(records: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row per explanation: where it was read, the text, its warnings."""
    placed = any(
        record["token"] is not None or record["position"] is not None for record in records
    )
    rows = []
    for record in records:
        place = (
            [_plain(record["position"]), chip(record["token"])]
            if placed
            else [", ".join(map(str, record["index"]))]
        )
        rows.append([*place, _body(record)])
    head = ("position", "token") if placed else ("index",)
    return table((*head, "explanation"), rows)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in the style that all of ours have.

    Args:
        head: The columns' names.
        rows: Their cells, as HTML: whoever made them has escaped what is in them.
    """
    names = "".join(f'<th scope="col" style="{_HEAD}">{name}</th>' for name in head)
    body = "".join(
        "<tr>" + "".join(f'<td dir="auto" style="{_CELL}">{cell}</td>' for cell in row) + "</tr>"
        for row in rows
    )
    return f'<table style="{_STYLE}"><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>'


def chip(token: str | None) -> str:
    """A token as the reading page shows it: its white space to be seen, set apart."""
    return "" if token is None else f'<code style="{_CHIP}">{escape(visible(token))}</code>'


def _body(record: Mapping[str, Any]) -> str:
    if record["error"] is not None:
        return f"<em>no text: this vector {escape(record['error'])}</em>"
    text = "<br>".join(escape(line) for line in record["text"].splitlines())
    notes = "".join(
        f'<div style="{_NOTE}">\u26a0 {escape(note)}</div>' for note in record["warnings"]
    )
    label = record.get("trust")
    trust = "" if label is None else f'<div style="{_NOTE}">{escape(label["line"])}</div>'
    return text + trust + notes


def _plain(value: Any) -> str:
    return "" if value is None else escape(str(value))
