"""A reading where frames and scripts are taken out: on a code host, which shows notebooks as files.

Which of an output's forms a host shows, and what it leaves of it, decides where this has to be.
GitHub converts a notebook as nbconvert does: of several forms it takes ``text/html`` before an
image or ``text/markdown``, and removes scripts, frames and every style. GitLab takes a PNG first,
then ``text/html`` (cleaned by DOMPurify, which drops frames), and ``text/markdown`` last of all.
So a second form would not be seen, and no PNG can be made without a browser: what a reader is to
see there has to be in the HTML itself, beside the frame, in elements that every cleaner keeps, with
no style, class or id. It is folded, because in a notebook the frame shows the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .escaping import Html, html, readable, visible
from .page import pairs

_ROWS, _TOKEN, _TEXT = 400, 60, 1000
"""The most rows, and the most characters of a token and of a text."""


def fallback(readings: Sequence[Mapping[str, Any]], *, depth: bool = False) -> Html:
    """Return a folded table of one reading or two, or of several layers, without styles.

    Args:
        readings: As for `page.reading`.
        depth: As for `page.reading`.
    """
    one, *others = readings
    tokens = one["records"]
    if depth:
        head = ["position", "token", *(f"block {each['layer']}" for each in readings)]
        rows = zip(*(each["records"] for each in readings), strict=True)
        found = [
            [_place(row[0]), _token(row[0]), *map(_said, row)]
            for row in rows
            if any(each["read"] for each in row)
        ]
    elif not others:
        head = ["position", "token", "explanation"]
        found = [[_place(each), _token(each), _said(each)] for each in tokens if each["read"]]
    else:
        second = others[0]["records"]
        head = ["position", "token", *(readable(str(each["label"]), 200) for each in readings)]
        found = [
            [_place(tokens[i]), _token(tokens[i]), _said(tokens[i]), _other(tokens[i], second[j])]
            for i, j in pairs(readings) or []
            if tokens[i]["read"] or second[j]["read"]
        ]
    layers = ", ".join(str(each["layer"]) for each in (readings if depth else [one]))
    about = f"{readable(str(one['target']), 200)}, block {layers}"
    title = f"If no page is shown above: {about}, {len(found)} tokens as a table"
    body = "".join(_row("td", each) for each in found[:_ROWS])
    more = len(found) - _ROWS
    left = f"<p>{more:,} more tokens are left out here.</p>" if more > 0 else ""
    return Html(
        f"<details><summary>{html(title)}</summary><table><thead>{_row('th', head)}</thead>"
        f"<tbody>{body}</tbody></table>{left}</details>"
    )


def _row(cell: str, values: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{cell}>{html(each)}</{cell}>" for each in values) + "</tr>"


def _place(record: Mapping[str, Any]) -> str:
    return str(record["position"])


def _token(record: Mapping[str, Any]) -> Html:
    return Html(f"<code>{html(visible(record['token'][:_TOKEN]))}</code>")


def _said(record: Mapping[str, Any]) -> Html:
    if record["error"] is not None:
        return Html(f"<em>no text: this vector {html(readable(record['error'], _TEXT))}</em>")
    if record["explanation"] is None:
        return Html("<em>not read</em>")
    lines = filter(None, readable(record["explanation"], _TEXT).splitlines())
    grade = record["grade"]
    label = "" if grade is None else f"<br><em>reconstruction: {html(readable(grade, 40))}</em>"
    return Html("<br>".join(map(html, lines)) + label)


def _other(record: Mapping[str, Any], second: Mapping[str, Any]) -> Html:
    same = record["explanation"] is not None and record["explanation"] == second["explanation"]
    return Html("<em>the same</em>") if same else _said(second)
