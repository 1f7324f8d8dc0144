"""Figures on a light page and on a dark one: everything that is written can be read there."""

import pytest
import torch

from nnsight_nla.experiments import logit_difference, patch, steer
from nnsight_nla.view import TEMPLATE

PAPER = {"light": "#ffffff", "dark": "#111111"}
PARIS = "What a lovely day! People in Paris speak"
METRIC = logit_difference(" French", " Italian")
_FILLS = """() => [...document.querySelectorAll("svg text")]
  .filter(t => t.textContent.trim() && !t.closest(".heatmaplayer"))
  .map(t => [t.textContent, getComputedStyle(t).fill])"""


def luminance(colour: str) -> float:
    if colour.startswith("#"):
        channels = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    else:
        channels = [float(each) for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    shares = [each / 255 for each in channels]
    linear = [s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return sum(w * s for w, s in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.fixture(scope="module")
def figures(pair):
    model, nla = pair
    rome = PARIS.replace("Paris", "Rome")
    grid = patch(model, nla, PARIS, rome, layers="all", positions="all", metric=METRIC)
    vector = {"vector": torch.ones(128), "doses": [0.5, 1, 2]}
    dosed = steer(model, nla, PARIS, layers=[1, 3], positions=-1, metric=METRIC, **vector)
    return {
        "grid": grid.plot(),
        "words": grid.plot(value="change"),
        "curves": dosed.plot(form="curves"),
    }


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
@pytest.mark.parametrize("name", ["grid", "words", "curves"])
def test_words_stand_out_from_the_page(context, figures, name, screenshots, tmp_path, request):
    scheme = request.node.callspec.params["context"]
    paper = PAPER[scheme]
    drawn = figures[name].to_html(full_html=False, include_plotlyjs=True)
    path = tmp_path / "figure.html"
    path.write_text(f'<!doctype html><body style="background:{paper}">{drawn}', "utf-8")
    page = context.new_page()
    page.goto(path.as_uri())
    page.wait_for_selector("svg text")
    page.screenshot(path=screenshots / f"figure-{name}-{scheme}.png")
    words = page.evaluate(_FILLS)
    assert len(words) > 8
    if name == "words":
        assert ["–", words[0][1]] in words, "the marks of blank cells are looked at too"
    assert {text: fill for text, fill in words if contrast(fill, paper) < 3.8} == {}
    backs = page.evaluate(
        "() => [...document.querySelectorAll('.main-svg, .bg')].map(e => "
        "[getComputedStyle(e).backgroundColor, getComputedStyle(e).fillOpacity, e.tagName])"
    )
    for background, opacity, tag in backs:
        assert background in ("rgba(0, 0, 0, 0)", "transparent")
        assert tag == "svg" or float(opacity) == 0


def test_lines_stand_out_too():
    for colour in TEMPLATE["layout"]["colorway"]:
        assert min(contrast(colour, paper) for paper in PAPER.values()) > 2.9, colour
