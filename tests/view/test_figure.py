"""The look of the figures: legible on light and dark pages, and a template that plotly takes."""

import plotly.graph_objects as go
import pytest

from nnsight_nla.view.figure import CHANGES, EFFECTS, INK, TEMPLATE, along, tinted, titled


def luminance(colour: str) -> float:
    """WCAG 2.2's relative luminance."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("page", ["#ffffff", "#111111"])
def test_text_has_contrast_on_light_and_dark_pages(page):
    high, low = sorted([luminance(INK), luminance(page)], reverse=True)
    assert (high + 0.05) / (low + 0.05) > 3.9


def test_the_background_is_transparent():
    layout = go.Figure().update_layout(template=TEMPLATE).layout.template.layout
    assert layout.paper_bgcolor == layout.plot_bgcolor == "rgba(0,0,0,0)"
    assert layout.font.color == layout.annotationdefaults.arrowcolor == INK
    assert layout.xaxis.automargin


def test_titles_are_lines_that_fit_a_phone_and_escaped():
    made = titled("a <b> " + "word " * 20, "a note " * 12)
    first, *lines = made["text"].split("<br>")
    assert first.startswith("a &lt;b&gt; word")
    notes = [line for line in lines if line.startswith('<span style="font-size:12px">')]
    assert len(notes) == 2
    assert all(len(line) <= 46 for line in lines if line not in notes)
    assert along("change of a metric, which is long <i>")["text"] == (
        "change of a metric, which is<br>long &lt;i&gt;"
    )


def test_the_colours_of_a_heat_map_grow_out_of_the_page():
    for scale, zero in ((EFFECTS, 1), (CHANGES, 0)):
        go.Heatmap(colorscale=scale)  # Plotly refuses what is no scale.
        assert scale[zero][1] == "rgba(128,128,128,0.13)"
        assert all(colour.endswith(",1)") for at, colour in scale if at != scale[zero][0])
    assert tinted("#0d9488", 0.18) == "rgba(13,148,136,0.18)"
