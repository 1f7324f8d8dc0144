"""The reading page: self-contained HTML that fetches nothing and trusts no text.

The readings are JSON in a data block; the scripts make the elements, from text nodes only. The
content security policy allows the hashes of this package's own script and style and nothing else,
so even a hole in the escaping would not run anything. Readers without scripts see a table with the
same texts.

The same script is a page that reads what is clicked, where a transport is there: `live` for a
server, `script` and `style` for a notebook's widget.
"""

from __future__ import annotations

import json
import math
import re
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from hashlib import sha256
from html import escape
from pathlib import Path
from typing import Any

from .escaping import html, readable, visible

_HERE = Path(__file__).parent
_SCRIPTS = ["dom", "diff", "skeleton", "shade", "text", "card", "search", "table", "move"]
_LIVE = ["range", "live", "experiments"]
"""The parts of the script, in `script/`, in order; a page that was read once has no `_LIVE`."""
_TOKEN, _TEXT = 200, 20_000
"""The most characters of a token and of an explanation on a page; the others are counted."""
_TITLE = 80
_COMMENT = re.compile(r"^ *(?://.*|/\*\*.*\*/)\n", re.MULTILINE)


def reading(
    readings: Sequence[Mapping[str, Any]],
    *,
    title: str = "",
    table: bool = True,
    depth: bool = False,
) -> str:
    """Return a page with one reading, with two next to each other, or with one for each layer.

    Args:
        readings: One or two, each with ``label``, ``target``, ``verbalizer``, ``layer`` and
            ``records``: a mapping per token of the text, with ``position``, ``token``, ``part``,
            ``read``, ``explanation``, ``norm``, ``reconstruction_cosine``, ``fve``,
            ``grade``, ``trust``, ``grounded``, ``warnings``, ``error``, and what else `token`
            takes.
        title: The page's title; by default the beginning of the text.
        table: Whether to add a table for readers without scripts.
        depth: Whether they are readings of one text at several layers, a column for each.
    """
    return _page(readings, title=title or _beginning(readings), table=table, depth=depth)


def live(
    transport: str,
    *,
    title: str = "",
    readings: Sequence[Mapping[str, Any]] = (),
    connect: str = "'self'",
) -> str:
    """Return a page that reads what is clicked.

    Args:
        transport: A script that sets ``globalThis.nnsightNla = {transport}``, an object
            ``{send(message), receive(callback), state(callback)}``.
        title: The page's title.
        readings: What it shows at first; other readings come as messages.
        connect: What the content security policy lets the transport connect to.
    """
    title = title or "Look around"
    return _page(readings, title=title, table=False, transport=transport, connect=connect)


def script(*, live: bool = True) -> str:
    """Return the page's script, which defines ``nnsightNla.mount(root, data, transport)``.

    Lines that are comments are left out, to keep the page small.

    Args:
        live: Whether with the parts that need a transport.
    """
    names = [*_SCRIPTS, *(_LIVE if live else []), "mount"]
    parts = [(_HERE / "script" / f"{name}.js").read_text("utf-8") for name in names]
    return "\n".join(
        ['"use strict";', "(() => {", *(_COMMENT.sub("", each) for each in parts), "})();"]
    )


def style(*, live: bool = True) -> str:
    """Return the page's style sheet, for a document or a shadow root.

    Args:
        live: Whether with the rules of the parts that need a transport.
    """
    names = ["page.css", "live.css"] if live else ["page.css"]
    return "\n".join((_HERE / name).read_text("utf-8") for name in names)


def _page(
    readings: Sequence[Mapping[str, Any]],
    *,
    title: str,
    table: bool,
    depth: bool = False,
    transport: str = "",
    connect: str = "'none'",
) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sides = list(map(side, readings))
    title = readable(title, 200)
    opposite = None if depth else pairs(readings)
    made = {"title": title, "readings": sides, "pairs": opposite, "depth": depth}
    sheet, own = style(live=bool(transport)), script(live=bool(transport))
    scripts = [each for each in (transport, own) if each]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("page.html").render(
        title=title,
        style=sheet,
        scripts=[{"text": each, "hash": _hash(each)} for each in scripts],
        style_hash=_hash(sheet),
        connect=connect,
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


def side(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's data of one reading, given as for `reading`."""
    about = {name: readable(str(given[name]), 200) for name in ("label", "target", "verbalizer")}
    more = {
        "receipt": _facts(given.get("receipt")),
        "code": _text(given.get("code"), _TEXT),
    }
    known = {name: value for name, value in more.items() if value is not None}
    return {**about, **known, "layer": given["layer"], "tokens": list(map(token, given["records"]))}


def token(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's fields of one token; absent values are left out, to keep the page small.

    Args:
        record: The fields of a `TokenReading`, and any of these. ``samples``: the texts.
            ``agree``: what they agree on. ``next``: pairs of a token and its probability.
            ``claims``: pairs of a part of the explanation and the cosine lost without it.
            ``against``: what the grade was measured against. ``denominator``: of the FVE.
            ``receipt``: pairs of a name and a value. ``code``: the lines that reproduce it.
    """
    piece, whole, get = record["token"], record.get("whole"), record.get
    found = {
        "p": record["position"],
        "t": visible(piece[:_TOKEN]),
        "w": visible(whole[:_TOKEN], joined=True) if whole else None,
        "in": whole == "" or None,
        "more": max(0, len(piece) - _TOKEN) or None,
        "br": "\n" in piece[:_TOKEN] or None,
        "part": readable(record["part"], 40),
        "x": _text(record["explanation"], _TEXT),
        "norm": _number(record["norm"]),
        "cos": _number(record["reconstruction_cosine"]),
        "fve": _number(record["fve"]),
        "grade": _text(record["grade"], 40),
        "trust": _text(record["trust"]),
        "shows": _text(get("grounded")),
        "warn": [readable(each, 500) for each in record["warnings"]] or None,
        "err": _text(record["error"]),
        "samples": [readable(each, _TEXT) for each in get("samples") or ()] or None,
        "agree": _text(get("agree")),
        "next": _pairs(get("next"), visible, _TOKEN),
        "claims": _pairs(get("claims"), lambda text: readable(text, _TEXT), _TEXT),
        "against": _text(get("against")),
        "var": _text(get("denominator")),
        "receipt": _facts(get("receipt")),
        "code": _text(get("code"), _TEXT),
    }
    return {name: value for name, value in found.items() if value is not None}


def _text(given: str | None, longest: int = 500) -> str | None:
    return None if given is None else readable(given, longest)


def _pairs(
    given: Sequence[tuple[str, float]] | None, shown: Callable[[str], str], longest: int
) -> list[tuple[str, float]] | None:
    """Return texts and their numbers, without those that are not finite."""
    found = [(shown(text[:longest]), _number(value)) for text, value in given or ()]
    return [(text, value) for text, value in found if value is not None] or None


def _facts(given: Sequence[tuple[str, str]] | None) -> list[tuple[str, str]] | None:
    return [(readable(name, 100), readable(value, 500)) for name, value in given or ()] or None


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
    """Return the beginning of the text as it was typed."""
    records = [
        record for record in readings[0]["records"] if record["part"] not in ("template", "reply")
    ]
    tokens = [
        (record.get("whole") or record["token"])[:_TOKEN]
        for record in records[:60]
        if record.get("whole") != ""
    ]
    text = " ".join("".join(tokens).split()) or "Reading"
    return text if len(text) <= _TITLE else f"{text[:_TITLE]}\u2026"


def _embedded(value: Any) -> str:
    """Return JSON that cannot end the script element around it, nor open a comment in it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
