"""The look of every plotly figure, legible on light and dark pages.

    figure.update_layout(template=TEMPLATE)

A figure cannot know the colour of the page, so its background is transparent. Its text is a grey
with a contrast of about 4 : 1 to white and to near-black; lines are the same grey, thinner.
"""

from __future__ import annotations

from typing import Any

INK = "#7a7a7a"
"""The colour of text, axes and marks."""
_GRID = "rgba(128,128,128,0.25)"
_AXIS = {
    "gridcolor": _GRID,
    "zerolinecolor": "rgba(128,128,128,0.5)",
    "linecolor": _GRID,
    "automargin": True,
}

TEMPLATE: dict[str, Any] = {
    "layout": {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK},
        "colorway": ["#6366f1", "#0d9488", "#ea580c", "#c026d3", "#0284c7", "#ca8a04"],
        "xaxis": _AXIS,
        "yaxis": _AXIS,
        "annotationdefaults": {"arrowcolor": INK},
        "shapedefaults": {"line": {"color": INK}},
    }
}
"""Pass it as plotly's ``template=``."""
