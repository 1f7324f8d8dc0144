"""Draw a doctor's report as bars: each setting's values, and what the texts reach with them."""

from __future__ import annotations

from textwrap import wrap
from typing import TYPE_CHECKING

from ..view.escaping import html, readable
from ..view.figure import TEMPLATE, titled

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from .report import Diagnosis, Variant

_DECLARED, _OTHER = "#ea580c", "#0d9488"
_LONGEST = 2000


def bars(diagnosis: Diagnosis) -> go.Figure:
    """Draw the figure that the verdicts are based on, for each value that was tried.

    Args:
        diagnosis: The report.
    """
    import plotly.graph_objects as go

    by_cosine = diagnosis.judge == "reconstructor"
    what = "cosine of vector and reconstruction" if by_cosine else "likelihood, nats per token"
    rows = [
        (f"{finding.setting}: {variant.value}", variant)
        for finding in diagnosis.findings
        if len(finding.variants) > 1
        for variant in finding.variants
    ]
    figure = go.Figure()
    for declared, name, colour in ((True, "as declared", _DECLARED), (False, "tried", _OTHER)):
        some = [(label, each) for label, each in rows if each.declared == declared]
        figure.add_bar(
            y=[html(label) for label, _ in some],
            x=[each.cosine if by_cosine else each.likelihood for _, each in some],
            orientation="h",
            name=name,
            marker={"color": colour},
            customdata=[_hover(each) for _, each in some],
            hovertemplate="%{x:.3f}<br>%{customdata}<extra></extra>",
        )
    for label, each in rows:
        if each.error is not None:
            figure.add_annotation(
                x=0, y=html(label), text=html(readable(each.error, 60)), showarrow=False,
                xanchor="left",
            )  # fmt: skip
    figure.update_layout(
        title=titled(readable(diagnosis.conclusion, 200)),
        template=TEMPLATE,
        barmode="overlay",
        xaxis={"title": {"text": what}},
        # The report's order, from the top; each setting's values next to each other.
        yaxis={
            "categoryorder": "array",
            "categoryarray": [html(label) for label, _ in rows],
            "autorange": "reversed",
        },
        height=190 + 30 * max(len(rows), 3),
    )
    return figure


def _hover(variant: Variant) -> str:
    if variant.error is not None:
        return html(readable(variant.error, _LONGEST))
    lines = readable(variant.text, _LONGEST).splitlines()
    return "<br>".join(html(part) for line in lines for part in wrap(line, 70))
