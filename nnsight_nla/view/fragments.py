"""An explanation's parts with bars for what each carries; inline styles, every value escaped."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

_BOX = "font:14px/1.5 system-ui,sans-serif;max-width:60rem;border-collapse:collapse;text-align:left"
_CELL = "padding:.3rem .8rem;border-top:1px solid #8884;vertical-align:top;text-align:left"
_CARRIES, _HARMS = "#0d9488", "#b91c1c"


def claims(record: Mapping[str, Any]) -> str:
    """A row per part: its text, a bar for what the vector loses without it, the figures."""
    parts = record["parts"]
    most = max([abs(part["carries"]) for part in parts], default=0.0) or 1.0
    names = ("carries", "", "alone", "part")
    head = "".join(f'<th scope="col" style="{_CELL}">{name}</th>' for name in names)
    rows = "".join(_row(part, most) for part in parts)
    caption = f"cosine {record['cosine']:.3f}; what it loses without each part"
    return (
        f'<table style="{_BOX}"><caption style="text-align:left;opacity:.75">{caption}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(part: Mapping[str, Any], most: float) -> str:
    carries = part["carries"]
    width = 100 * abs(carries) / most
    colour = _CARRIES if carries > 0 else _HARMS
    bar = (
        '<div style="width:8rem;background:#8883;height:.8em;margin-top:.35em">'
        f'<div style="width:{width:.0f}%;background:{colour};height:100%"></div></div>'
    )
    cells = (f"{carries:+.3f}", bar, f"{part['alone']:.3f}", escape(part["text"]))
    return "<tr>" + "".join(f'<td dir="auto" style="{_CELL}">{c}</td>' for c in cells) + "</tr>"
