"""The look of every plotly figure, legible on light and dark pages.

    figure.update_layout(template=TEMPLATE)

A figure cannot know the colour of the page, and a notebook runs no script of ours. So its
background is transparent, and it follows the page: light, dark, or switched while it is shown. Its
text is a grey with a contrast of about 4 : 1 to white and to near-black; lines are the same grey,
thinner. The colours of a heat map grow out of the page: a cell at zero is a faint grey on any.
"""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from .escaping import html

INK = "#7a7a7a"
"""The colour of text, axes and marks."""
COLOURS = ("#6366f1", "#0d9488", "#ea580c", "#c026d3", "#0284c7", "#ca8a04")
"""The colours of lines, one after the other."""
ZERO, LESS, MORE, SHARE = (128, 128, 128), (47, 111, 208), (214, 59, 50), (225, 100, 15)
"""Red, green and blue of a cell at zero, of negative and positive effects, and of shares."""
FAINT = 0.13
"""The opacity of a cell at zero; at the largest value it is 1."""
_WIDTH, _SMALL = 46, 58
"""The characters of a line of a title, and of its notes, that fit a phone."""
_FITS = 60
"""The pixels of a title that fit plotly's usual margin."""
_HIGH = 28
"""Those of the title of a vertical axis."""
_GRID = "rgba(128,128,128,0.25)"
_AXIS = {
    "gridcolor": _GRID,
    "zerolinecolor": "rgba(128,128,128,0.5)",
    "linecolor": _GRID,
    "automargin": True,
}


def _rgba(colour: tuple[int, int, int], opacity: float) -> str:
    return f"rgba({','.join(map(str, colour))},{opacity:g})"


EFFECTS = [[0.0, _rgba(LESS, 1)], [0.5, _rgba(ZERO, FAINT)], [1.0, _rgba(MORE, 1)]]
"""Plotly's ``colorscale=`` for numbers around zero."""
CHANGES = [[0.0, _rgba(ZERO, FAINT)], [1.0, _rgba(SHARE, 1)]]
"""The one for shares from zero."""
_HALO = "0 0 2px #fff, 0 0 3px #fff, 0 0 4px #fff"
MARKS: dict[str, Any] = {"color": "#111", "size": 13, "shadow": _HALO}
"""Plotly's ``textfont=`` in a cell of any colour, on any page: dark, with a light halo."""
THIN = 12
"""The width of a colour bar, in pixels."""
_BELOW = {"orientation": "h", "x": 0, "y": 0, "yanchor": "bottom", "yref": "container"}
"""The legend, where its long names take no width from the axes."""
TEMPLATE: dict[str, Any] = {
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK},
        "colorway": list(COLOURS),
        "legend": _BELOW,
        "hoverlabel": {
            "bgcolor": "#262626",
            "bordercolor": INK,
            "font": {"color": "#f4f4f4"},
            "align": "left",
        },
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "annotationdefaults": {"arrowcolor": INK},
        "shapedefaults": {"line": {"color": INK}},
    }
}
"""Pass it as plotly's ``template=``."""


def tinted(colour: str, opacity: float) -> str:
    """Return a colour of `COLOURS` with an opacity, for a band.

    >>> tinted("#6366f1", 0.2)
    'rgba(99,102,241,0.2)'
    """
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return _rgba((red, green, blue), opacity)


def along(text: str) -> dict[str, Any]:
    """Return plotly's ``title=`` of a vertical axis, in lines that a low figure has room for."""
    return {"text": "<br>".join(map(html, wrap(text, _HIGH)))}


def titled(text: str, *notes: str) -> dict[str, Any]:
    """Return plotly's ``title=``: lines that fit a phone, and room for them above the axes.

    Args:
        text: The title; escaped.
        notes: Smaller lines below it.
    """
    large, small = wrap(text, _WIDTH), [line for note in notes for line in wrap(note, _SMALL)]
    below = (f'<span style="font-size:12px">{html(line)}</span>' for line in small)
    # Plotly moves the lines of a title that needs a larger margin up, as of one that ends at the
    # axes: one at the figure's top would leave it.
    tall = 20 * len(large) + 16 * len(small) > _FITS
    place = (
        {"yanchor": "bottom", "yref": "paper", "pad": {"t": 40, "b": 12}}
        if tall
        else {"yanchor": "top", "yref": "container", "pad": {"t": 24, "b": 8}}
    )
    return {
        "text": "<br>".join([*map(html, large), *below]),
        "font": {"size": 15},
        "x": 0.02,
        "xanchor": "left",
        "y": 1,
        **place,
        "automargin": True,
    }
