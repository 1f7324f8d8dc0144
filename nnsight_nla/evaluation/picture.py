"""Draw scores by source, and reliability curves, as plotly figures.

Explanations next to controls, with their texts when the pointer is on a point::

    from nnsight_nla.evaluation import plot_scores

    controls = nla.controls(8, like=thought)
    texts = {"its own text": thought.text, "a random direction's": controls.random.text}
    plot_scores({name: nla.score(said, vectors) for name, said in texts.items()}, texts=texts)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.baseline import Baseline
from ..errors import ReconstructionError, shown
from ..view.escaping import html, readable
from ..view.figure import INK, TEMPLATE, THIN, along, titled
from .reliability import Reliability
from .score import Score

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LONGEST = 2000
_DASHES = (("dash", "dashed"), ("dot", "dotted"), ("dashdot", "dashes and dots"))
_NARROW, _PHONE = 14, 36
"""The characters of a line of a column's name, and of all columns next to each other on a phone."""
_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of it, modulo 1, spread points evenly without a random number."""


def plot_scores(
    scores: Mapping[str, Score],
    *,
    texts: Mapping[str, Any] | None = None,
    shades: Mapping[str, Sequence[float]] | None = None,
    shade: str = "",
    baselines: Iterable[Baseline] | None = None,
) -> go.Figure:
    """Draw the cosines of several sources of texts in columns: explanations next to controls.

    A point is a vector and its text's reconstruction, a line is the mean of its column, and
    horizontal lines are where the FVE is 0.

    Args:
        scores: By the name of the source, what `NLA.score` returned.
        texts: By the same names, the texts, shown when the pointer is on a point: of the shape of
            the score, nested lists or flat.
        shades: By the same names, a number for each text, for the colour of its point, such as how
            many of its statements are right; sources that are left out are grey.
        shade: What the numbers are.
        baselines: Those whose FVE of 0 is drawn; the ones of the scores unless given.

    Raises:
        ReconstructionError: There are no scores, or `texts` or `shades` do not fit them.
    """
    import plotly.graph_objects as go

    if not scores:
        raise ReconstructionError("plot_scores({}): expected scores by the name of their source.")
    said, numbers = texts or {}, shades or {}
    for option, given in (("texts", said), ("shades", numbers)):
        if unknown := next((name for name in given if name not in scores), None):
            known = ", ".join(map(repr, scores))
            raise ReconstructionError(
                f"{option} has {unknown!r}, which has no score: expected some of {known}."
            )
    every = [number for given in numbers.values() for number in given]
    figure = go.Figure()
    barred = False
    for place, (name, score) in enumerate(scores.items()):
        cosines = score.cosine.flatten().tolist()
        words = _one_each(name, "texts", _flat(said.get(name)), len(cosines))
        marker: dict[str, Any] = {"size": 7, "color": INK, "line": {"width": 0.5, "color": INK}}
        if name in numbers:
            marker |= {
                "color": _one_each(name, "shades", list(numbers[name]), len(cosines)),
                "cmin": min(every),
                "cmax": max(every),
                "colorscale": "Viridis",
            }
            if not barred:
                title = {**along(shade), "side": "right"}
                marker["colorbar"] = {"title": title, "thickness": THIN}
                barred = True
        hover = "cosine %{y:.3f}"
        figure.add_scatter(
            x=[place + 0.6 * (i * _GOLDEN % 1 - 0.5) for i in range(len(cosines))],
            y=[None if math.isnan(each) else each for each in cosines],
            mode="markers",
            name=html(name),
            marker=marker,
            customdata=[_lines(text) for text in words] if words else None,
            hovertemplate=f"{hover}<br>%{{customdata}}<extra></extra>"
            if words
            else f"{hover}<extra></extra>",
        )
        known = [each for each in cosines if not math.isnan(each)]
        if known:
            mean = sum(known) / len(known)
            figure.add_scatter(
                x=[place - 0.36, place + 0.36],
                y=[mean, mean],
                mode="lines",
                line={"color": INK, "width": 2},
                hovertemplate=f"mean {mean:z.3f}<extra></extra>",
            )
    below: list[str] = []
    for number, baseline in enumerate(_shown_baselines(scores, baselines)):
        dash, word = _DASHES[number % len(_DASHES)]
        figure.add_hline(1 - baseline.value / 2, line={"dash": dash, "width": 1, "color": INK})
        below.append(f"{word}: FVE 0 ({baseline.in_words()})")
    figure.update_layout(
        title=titled("How much of each vector is in the text?", *below),
        template=TEMPLATE,
        showlegend=False,
        height=440 + 18 * len(below),
        margin={"r": 20},
        xaxis={**_labels(list(scores)), "showgrid": False, "zeroline": False},
        yaxis={"title": along("cosine of vector and reconstruction")},
    )
    return figure


def plot_reliability(
    curves: Mapping[str, Reliability | Mapping[str, Any]], *, only: Sequence[str] | None = None
) -> go.Figure:
    """Draw how often statements are right against the probability that they were given.

    On the dotted diagonal, of the statements given 0.7 seven in ten are right.

    Args:
        curves: By the name of the statement, a curve: what `calibrating.validated` or `reliability`
            returned, or the same as plain data, as ``nla_calibration.json`` has it under
            ``notes["reliability"]``.
        only: The statements to draw, in this order; all unless given.

    Raises:
        ReconstructionError: A curve is missing, or is something else.
    """
    import plotly.graph_objects as go

    names = list(curves) if only is None else list(only)
    figure = go.Figure()
    for name in names:
        if name not in curves:
            known = ", ".join(map(repr, curves)) or "none"
            raise ReconstructionError(f"only={shown(only)}: there is no {name!r}. Curves: {known}.")
        given = curves[name]
        curve = given.to_dict() if isinstance(given, Reliability) else given
        if not isinstance(curve, Mapping) or not {"bins", "error"} <= curve.keys():
            raise ReconstructionError(
                f"curves[{name!r}] is {shown(given)}, expected a Reliability, or its to_dict()."
            )
        bins = curve["bins"]
        figure.add_scatter(
            x=[each["predicted"] for each in bins],
            y=[each["rate"] for each in bins],
            customdata=[each["n"] for each in bins],
            mode="lines+markers",
            name=f"{html(name)}: error {curve['error']:z.3f}",
            hovertemplate="given %{x:.2f}, right %{y:.2f} of %{customdata}<extra></extra>",
        )
    figure.add_scatter(
        x=[0, 1], y=[0, 1], mode="lines", name="perfect", hoverinfo="skip",
        line={"dash": "dot", "color": INK},
    )  # fmt: skip
    figure.update_layout(
        title=titled("Of the statements given this probability, how many are right?"),
        template=TEMPLATE,
        height=460,
        xaxis={"title": {"text": "probability, mean of the bin"}, "range": [0, 1]},
        yaxis={"title": {"text": "share that is right"}, "range": [0, 1.02]},
    )
    return figure


def _labels(names: Sequence[str]) -> dict[str, Any]:
    """Return the names of the columns for plotly: at an angle where a phone has no room."""
    wrapped = [wrap(name, _NARROW) for name in names]
    level = sum(max(map(len, lines), default=0) for lines in wrapped) <= _PHONE
    lines = wrapped if level else [[name] for name in names]
    return {
        "tickvals": list(range(len(names))),
        "ticktext": ["<br>".join(map(html, some)) for some in lines],
        "tickangle": 0 if level else -40,
    }


def _shown_baselines(
    scores: Mapping[str, Score], given: Iterable[Baseline] | None
) -> list[Baseline]:
    if given is not None:
        return list(given)
    own = {score.baseline.in_words(): score.baseline for score in scores.values() if score.baseline}
    return list(own.values())


def _flat(texts: Any) -> list[str]:
    """Return the texts of one source, whatever their shape; a failed row has an empty one."""
    if texts is None:
        return []
    return ["" if text is None else str(text) for text in np.array(texts, dtype=object).flatten()]


def _one_each(name: str, option: str, given: list[Any], count: int) -> list[Any]:
    if given and len(given) != count:
        raise ReconstructionError(
            f"{option}[{name!r}] has {len(given)} values, and the score {count} rows: expected one "
            "for each."
        )
    return given


def _lines(text: str) -> str:
    lines = (part for line in readable(text, _LONGEST).splitlines() for part in wrap(line, 70))
    return "<br>".join(map(html, lines))
