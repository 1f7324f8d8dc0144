"""Heat maps and curves as HTML and SVG, without a script or a library.

Their colours have an opacity, so they follow a light or a dark page, and what is said about a cell
is inside the cell: it is shown while the pointer or the keyboard is on it, or after a tap. A page
needs `STYLE` once::

    document(title, STYLE, heat_map(...), curves(...))
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .escaping import Html, html
from .figure import COLOURS, FAINT, INK, LESS, MORE, SHARE, ZERO

_LEVELS = 10
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 360, 220, 44, 10, 10, 34
_TICKS = 5


@dataclass(frozen=True)
class Cell:
    """A cell of a heat map."""

    level: float | None
    """−1 to 1, for its colour; ``None`` for no colour."""
    mark: str
    """One character in it."""
    details: Html
    """What is shown about it, without blocks; may be empty."""


@dataclass(frozen=True)
class Dot:
    """A point of a curve."""

    x: float
    y: float
    filled: bool
    """Whether it is drawn as a disc; otherwise, as a ring."""
    title: str
    """What is shown while the pointer is on it."""


@dataclass(frozen=True)
class Line:
    """A curve, and a band behind it."""

    name: str
    dots: Sequence[Dot]
    low: Sequence[Dot] = ()
    """The lower edge of the band, from the left."""
    high: Sequence[Dot] = ()
    """The upper edge."""
    band: str = ""
    """The name of the band."""


def heat_map(
    upwards: Sequence[str],
    across: Sequence[str],
    cells: Mapping[tuple[str, str], Cell],
    *,
    titles: tuple[str, str],
    caption: str,
    most: str,
    signed: bool,
) -> Html:
    """Return a heat map as a table, which scrolls by itself where it is wider than the page.

    Args:
        upwards: The labels of its rows, from the lowest.
        across: Those of its columns.
        cells: By both labels; a place without one is empty.
        titles: What the rows and the columns are.
        caption: Above it.
        most: The largest value, as a text, for the key.
        signed: Whether there are negative values: blue and red, rather than orange.
    """
    head = "".join(f'<th scope="col"><span>{html(each)}</span></th>' for each in across)
    body = "".join(
        f'<tr><th scope="row">{html(up)}</th>'
        + "".join(_cell(cells.get((up, right))) for right in across)
        + "</tr>"
        for up in reversed(upwards)
    )
    ends = [(f"p{_LEVELS}", most), ("p0", "0"), *([(f"n{_LEVELS}", f"−{most}")] if signed else [])]
    key = "".join(f"<b><i class={name}></i>{html(end)}</b> " for name, end in reversed(ends))
    kind = "heat" if signed else "heat share"
    return Html(
        f'<div class="{kind}"><p>{html(caption)} Upwards: {html(titles[0])}; to the right: '
        f"{html(titles[1])}. {key}</p><div><table><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div></div>"
    )


def curves(lines: Sequence[Line], *, titles: tuple[str, str]) -> Html:
    """Return curves as an SVG that is as wide as the page, with a key below it.

    Args:
        lines: At least one, with at least one dot.
        titles: What goes to the right, and what upwards.
    """
    every = [dot for line in lines for dot in (*line.dots, *line.low, *line.high)]
    if not every:
        return Html("")
    xs = _ticks([dot.x for dot in every])
    ys = _ticks([0.0, *(dot.y for dot in every)])
    ends = min(dot.x for dot in every), max(dot.x for dot in every)

    def place(x: float, y: float) -> tuple[float, float]:
        right = (x - ends[0]) / ((ends[1] - ends[0]) or 1)
        up = (y - ys[0]) / (ys[-1] - ys[0])
        return (
            round(_LEFT + right * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def path(dots: Sequence[Dot]) -> str:
        return " ".join("{},{}".format(*place(dot.x, dot.y)) for dot in dots)

    parts: list[str] = []
    for y in ys:
        _, level = place(ends[0], y)
        parts.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{level}" y2="{level}" '
            f'stroke="currentColor" stroke-opacity="{0.5 if y == 0 else 0.15}"/>'
            f'<text x="{_LEFT - 5}" y="{level + 3}" text-anchor="end">{y:g}</text>'
        )
    for x in xs:
        if ends[0] <= x <= ends[1]:
            at, base = place(x, ys[0])
            parts.append(f'<text x="{at}" y="{base + 14}" text-anchor="middle">{x:g}</text>')
    parts.append(
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{html(titles[0])}</text>'
    )
    key: list[str] = []
    for number, line in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        if line.low:
            around = path([*line.low, *reversed(line.high)])
            parts.append(
                f'<polygon points="{around}" fill="{colour}" fill-opacity=".18" '
                f'stroke="{colour}" stroke-opacity=".5" stroke-width=".7" stroke-dasharray="2 2">'
                f"<title>{html(line.band)}</title></polygon>"
            )
            key.append(f'<li><i style="background:{colour};opacity:.3"></i>{html(line.band)}</li>')
        parts.append(f'<polyline points="{path(line.dots)}" fill="none" stroke="{colour}"/>')
        for dot in line.dots:
            x, y = place(dot.x, dot.y)
            fill = colour if dot.filled else "Canvas"
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="3.2" fill="{fill}" stroke="{colour}">'
                f"<title>{html(dot.title)}</title></circle>"
            )
        key.append(f'<li><i style="background:{colour}"></i>{html(line.name)}</li>')
    return Html(
        f'<figure class="curves"><figcaption>{html(titles[1])}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html(titles[1])}">'
        f"{''.join(parts)}</svg><ul>{''.join(key)}</ul></figure>"
    )


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return "<td></td>"
    shade = ""
    if cell.level is not None:
        step = round(_LEVELS * min(1.0, abs(cell.level)))
        shade = f" class={'n' if cell.level < 0 and step else 'p'}{step}"
    if not cell.details:
        return f"<td{shade}>{html(cell.mark)}</td>"
    return f"<td{shade}><button>{html(cell.mark)}<span>{html(cell.details)}</span></button></td>"


def _ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers that span the values.

    >>> _ticks([0.0, 0.93]), _ticks([-7.6, 1.2]), _ticks([2.0])
    ([0.0, 0.2, 0.4, 0.6, 0.8, 1.0], [-8.0, -6.0, -4.0, -2.0, 0.0, 2.0], [2.0, 3.0])
    """
    low, high = min(values), max(values)
    if low == high:
        return [low, low + 1]
    rough = (high - low) / _TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(each for each in (1, 2, 5, 10) if each * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _shades(name: str, colour: tuple[int, int, int]) -> str:
    """Return the classes of a colour, from the faint grey of zero to the colour itself."""
    rules: list[str] = []
    for step in range(_LEVELS + 1):
        share = step / _LEVELS
        mixed = (
            round(zero + share * (full - zero)) for zero, full in zip(ZERO, colour, strict=True)
        )
        opacity = FAINT + share * (1 - FAINT)
        rules.append(f"{name}{step}{{background:rgba({','.join(map(str, mixed))},{opacity:z.2f})}}")
    return "".join(rules)


STYLE = Html(
    "<style>"
    ".heat{margin:1rem 0}.heat div{overflow-x:auto}"
    ".heat table{border-collapse:separate;border-spacing:1px;font-size:12px;margin:0}"
    ".heat p{font-size:13px;max-width:44rem}.heat b{font-weight:400;white-space:nowrap}"
    ".heat button b{font-weight:600;white-space:normal}"
    ".heat th{font-weight:400;padding:0 .4rem 0 0;text-align:right}"
    ".heat thead th{vertical-align:bottom;padding:0 0 .3rem}"
    ".heat thead th span{writing-mode:vertical-rl;transform:rotate(180deg);white-space:nowrap;"
    "max-height:13rem;overflow:hidden;text-overflow:ellipsis;margin:auto}"
    ".heat td{padding:0;height:1.8rem;min-width:1.8rem;text-align:center}"
    ".heat i,.curves i{display:inline-block;width:1em;height:1em;margin:0 .3em 0 0;"
    "vertical-align:-.15em;border-radius:2px}"
    ".heat button{all:unset;display:block;width:100%;line-height:1.8rem;cursor:default}"
    ".heat button:hover,.heat button:focus{outline:2px solid currentColor;outline-offset:-2px}"
    ".heat button span{display:none}"
    ".heat button:hover span,.heat button:focus span{display:block;position:fixed;z-index:1;"
    "left:0;right:0;bottom:0;max-height:45vh;overflow:auto;background:Canvas;color:CanvasText;"
    f"border-top:2px solid {INK};padding:.7rem max(1rem,calc(50% - 30rem));text-align:left;"
    "font:14px/1.5 system-ui,sans-serif;overflow-wrap:anywhere}"
    ".heat:has(button:hover) button:focus:not(:hover) span{display:none}"
    ".curves{margin:1rem 0;max-width:34rem}"
    ".curves svg{width:100%;font:9px system-ui,sans-serif;fill:currentColor;overflow:visible}"
    ".curves circle:hover{stroke-width:3}"
    ".curves ul{list-style:none;padding:0;margin:.3rem 0;font-size:13px}"
    + _shades(".n", LESS)
    + _shades(".p", MORE)
    + _shades(".share .p", SHARE)
    + "</style>"
)
"""The style of both, once for each page."""
