"""The reading page: one self-contained HTML file that fetches nothing and trusts no text.

The readings are JSON in a data block; `page.js` makes the elements, from text nodes only. The
content security policy allows the hashes of this package's own script and style and nothing else,
so even a hole in the escaping would not run anything. Readers without scripts see a table with the
same texts.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from .escaping import html, readable, visible

_HERE = Path(__file__).parent
_TOKEN, _TEXT = 200, 20_000
"""The most characters of a token and of an explanation on a page; the others are counted."""
_TITLE = 80


def reading(readings: Sequence[Mapping[str, Any]], *, title: str = "", table: bool = True) -> str:
    """Return a page with one reading, or with two next to each other.

    Args:
        readings: One or two, each with ``label``, ``target``, ``verbalizer``, ``layer`` and
            ``records``: a mapping per token of the text, with ``position``, ``token``, ``part``,
            ``read``, ``explanation``, ``norm``, ``reconstruction_cosine``, ``fve``,
            ``grade``, ``trust``, ``grounded``, ``warnings``, ``error``.
        title: The page's title; by default the beginning of the text.
        table: Whether to add a table for readers without scripts.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sides = [_side(each) for each in readings]
    title = readable(title or _beginning(readings), 200)
    style, script = ((_HERE / name).read_text("utf-8") for name in ("page.css", "page.js"))
    made = {"title": title, "readings": sides, "pairs": pairs(readings)}
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=title,
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        embedded=_embedded(made),
        sides=sides if table else [],
    )


def document(title: str, *parts: str) -> str:
    """Return a page of tables that runs no script and fetches nothing.

    Args:
        title: The title; escaped.
        parts: The tables, which are `Html`; any other string is escaped.
    """
    name, body = html(readable(title, 200)), "\n".join(map(html, parts))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">"
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{name}</title>"
        "<style>body{font:14px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:62rem;"
        "padding:0 1rem}h1{font-size:1.3rem}h1,div,td{overflow-wrap:anywhere}"
        "table{margin-bottom:1.5rem}@media(max-width:40rem){body{margin:1rem auto}"
        "body>table thead{display:none}body>table tr,body>table td{display:block}"
        "body>table tr{border-top:1px solid #8884;padding:.4rem 0}"
        "body>table td{border:0!important;padding:.1rem 0!important}"
        "body>table td:not(:last-child){display:inline-block;margin-right:1rem}}</style></head>\n"
        f"<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def frame(page: str, height: int = 560) -> str:
    """Return `page` in a frame for a notebook: a sandbox that can run its script only.

    Args:
        page: The HTML that `reading` returned.
        height: The frame's height in CSS pixels.
    """
    return (
        f'<iframe title="reading" sandbox="allow-scripts" srcdoc="{escape(page)}" '
        f'style="width:100%;height:{height}px;border:0;border-radius:8px"></iframe>'
    )


def _side(given: Mapping[str, Any]) -> dict[str, Any]:
    about = {name: readable(str(given[name]), 200) for name in ("label", "target", "verbalizer")}
    return {**about, "layer": given["layer"], "tokens": [_token(each) for each in given["records"]]}


def _token(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's fields of one token; absent values are left out, to keep the page small."""
    token, text, error = record["token"], record["explanation"], record["error"]
    grounded = record.get("grounded")
    found = {
        "p": record["position"],
        "t": visible(token[:_TOKEN]),
        "more": max(0, len(token) - _TOKEN) or None,
        "br": "\n" in token[:_TOKEN] or None,
        "part": readable(record["part"], 40),
        "x": None if text is None else readable(text, _TEXT),
        "norm": _number(record["norm"]),
        "cos": _number(record["reconstruction_cosine"]),
        "fve": _number(record["fve"]),
        "grade": None if record["grade"] is None else readable(record["grade"], 40),
        "trust": None if record["trust"] is None else readable(record["trust"], 500),
        "shows": None if grounded is None else readable(grounded, 500),
        "warn": [readable(each, 500) for each in record["warnings"]] or None,
        "err": None if error is None else readable(error, 500),
    }
    return {name: value for name, value in found.items() if value is not None}


def _number(value: float | None) -> float | None:
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def pairs(readings: Sequence[Mapping[str, Any]]) -> list[list[int]] | None:
    """Return which tokens of the two texts are shown opposite each other, as index pairs."""
    if len(readings) < 2:
        return None
    one, two = ([record["token"] for record in each["records"]] for each in readings)
    if len(one) == len(two):
        return [[i, i] for i in range(len(one))]
    found: list[list[int]] = []
    for tag, a, a_end, b, b_end in SequenceMatcher(None, one, two).get_opcodes():
        if tag == "equal" or a_end - a == b_end - b:
            found += [[a + i, b + i] for i in range(a_end - a)]
    return found


def _beginning(readings: Sequence[Mapping[str, Any]]) -> str:
    tokens = [
        record["token"][:_TOKEN]
        for record in readings[0]["records"]
        if record["part"] not in ("template", "reply")
    ]
    text = " ".join("".join(tokens[:60]).split()) or "Reading"
    return text if len(text) <= _TITLE else f"{text[:_TITLE]}\u2026"


def _embedded(value: Any) -> str:
    """Return JSON that cannot end the script element around it, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
