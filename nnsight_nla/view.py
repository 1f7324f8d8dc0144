"""Plain records to HTML: inline styles, no network, every value escaped."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_STYLE = (
    "border-collapse:collapse;font:14px/1.45 system-ui,sans-serif;text-align:left;max-width:60rem"
)
_CELL = "padding:.35rem .7rem;border-top:1px solid #8884;vertical-align:top;text-align:left"


def explanation(records: Sequence[Mapping[str, Any]]) -> str:
    """A table with a row per explanation: where it was read, the text, its warnings."""
    placed = any(
        record["token"] is not None or record["position"] is not None for record in records
    )
    head = ["position", "token"] if placed else ["index"]
    lines = [
        f'<table style="{_STYLE}"><thead><tr>',
        *(f'<th scope="col" style="{_CELL}">{name}</th>' for name in (*head, "explanation")),
        "</tr></thead><tbody>",
    ]
    for record in records:
        place = (
            [_plain(record["position"]), f"<code>{_visible(record['token'])}</code>"]
            if placed
            else [", ".join(map(str, record["index"]))]
        )
        cells = [*place, _body(record)]
        lines += [
            "<tr>",
            *(f'<td dir="auto" style="{_CELL}">{cell}</td>' for cell in cells),
            "</tr>",
        ]
    return "".join([*lines, "</tbody></table>"])


def _body(record: Mapping[str, Any]) -> str:
    if record["error"] is not None:
        return f"<em>no text: this vector {escape(record['error'])}</em>"
    text = "<br>".join(escape(line) for line in record["text"].splitlines())
    notes = "".join(
        f'<div style="opacity:.75;font-size:12px">\u26a0 {escape(note)}</div>'
        for note in record["warnings"]
    )
    return text + notes


def _visible(token: Any) -> str:
    """A token with its white space shown, and what would be invisible or turn the text around."""
    shown = _plain(token).replace(" ", "\u2423").replace("\n", "\u21b5").replace("\t", "\u21e5")
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in ("Cc", "Cf") else char
        for char in shown
    )


def _plain(value: Any) -> str:
    return "" if value is None else escape(str(value))
