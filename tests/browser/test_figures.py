"""Figures on a light page and on a dark one, on a desktop and on a phone; and the page of a sweep.

Everything that is written can be read there, nothing is cut off, and colours follow the page.
"""

import io
import json

import pytest
import torch
from PIL import Image
from plotly.offline import get_plotlyjs

from nnsight_nla import tiny
from nnsight_nla.evaluation import plot_reliability, plot_scores
from nnsight_nla.evaluation.length import OverLength, Point
from nnsight_nla.experiments import ablate, logit_difference, patch, steer
from nnsight_nla.training import plot_log
from nnsight_nla.view import TEMPLATE
from nnsight_nla.view.figure import titled
from tests.browser.conftest import Watched
from tests.doctor.test_picture import report
from tests.evaluation.test_picture import BASELINE, by_hand
from tests.experiments.test_sweep import by_hand as small_sweep
from tests.training.test_curves import LOG

PAPER = {"light": "#ffffff", "dark": "#111111"}
SIZES = {"desktop": {"width": 1100, "height": 760}, "phone": {"width": 390, "height": 800}}
PARIS = "What a lovely day! People in Paris speak"
METRIC = logit_difference(" French", " Italian")
SOURCES = ("its own text", "the null text", "a random direction's", "another row's text", "noise")
_DRAW = """figures => Promise.all(Object.entries(figures).map(([name, figure]) => {
  const place = document.body.appendChild(document.createElement("div"));
  place.id = name;
  return Plotly.newPlot(place, figure.data, figure.layout, {responsive: true});
}))"""
_TEXTS = """name => {
  const place = document.getElementById(name), frame = place.getBoundingClientRect();
  return [...place.querySelectorAll("svg text")].filter(t => t.textContent.trim()).map(t => {
    const box = t.getBoundingClientRect(), style = getComputedStyle(t);
    return {text: t.textContent, fill: style.fill, shadow: style.textShadow,
      mark: !!t.closest(".heatmaplayer"),
      over: Math.max(frame.left - box.left, box.right - frame.right, frame.top - box.top,
        box.bottom - frame.bottom)};
  });
}"""
_BACKS = """() => [...document.querySelectorAll('.main-svg, .bg')].map(e =>
  [getComputedStyle(e).backgroundColor, getComputedStyle(e).fillOpacity, e.tagName])"""
_OVERLAPS = """name => {
  const ticks = [...document.querySelectorAll(`#${name} .xtick text`)];
  // Along a slanted label: the distance of two of them has to be more than their height.
  const at = ticks.map(t => t.getCTM().e), tall = t => t.querySelectorAll("tspan").length || 1;
  const level = ticks.every(t => !/rotate\\((?!0)/.test(t.getAttribute("transform") || ""));
  if (!level)
    return ticks.slice(1).some((t, i) => {
      const [one, two] = [ticks[i], t].map(e => e.getBoundingClientRect());
      return (two.right - one.right) * Math.sin(40 * Math.PI / 180) < 12 * tall(t);
    });
  return ticks.slice(1).some((t, i) =>
    ticks[i].getBoundingClientRect().right > t.getBoundingClientRect().left);
}"""


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
def sweeps(pair):
    model, nla = pair
    rome = PARIS.replace("Paris", "Rome")
    vector = {"vector": torch.ones(128), "doses": [0.5, 1, 2], "controls": 3}
    options = {"metric": METRIC}
    return {
        "patch": patch(model, nla, PARIS, rome, layers="all", positions="all", **options),
        "steer": steer(model, nla, PARIS, layers=[1, 3], positions=-1, **vector, **options),
        "heads": ablate(
            model, nla, PARIS, layers=[1, 3], positions=-1, site="head", method="zero", **options
        ),
    }


@pytest.fixture(scope="module")
def figures(sweeps):
    random = torch.Generator().manual_seed(0)
    scores = {
        name: by_hand((0.9 - 0.2 * i + 0.05 * torch.randn(20, generator=random)).tolist())
        for i, name in enumerate(SOURCES)
    }
    shades = {SOURCES[0]: list(range(20))}
    points = {"line": Point(6, 0.7, 0.6, {"subject": 0.9}), "8": Point(8, 0.8, 0.7, {"subject": 1})}
    return {
        "grid": sweeps["patch"].plot(),
        "words": sweeps["patch"].plot(value="change"),
        "curves": sweeps["steer"].plot(form="curves"),
        "curves-words": sweeps["steer"].plot(form="curves", value="change"),
        "heads": sweeps["heads"].plot(),
        "scores": plot_scores(scores, shades=shades, shade="how many statements are right"),
        "few-scores": plot_scores({name: scores[name] for name in SOURCES[:2]}),
        "reliability": plot_reliability(tiny.figures()["truth"]["calibration"]["tested"]),
        "doctor": report("reconstructor").plot(),
        "log": plot_log(LOG),
        "length": OverLength(points, 9, BASELINE).plot(),
    }


@pytest.fixture(params=["desktop", "phone"])
def size(request):
    return request.param


@pytest.fixture
def drawn(context, figures, size, request, tmp_path):
    """A page with all figures, and the colour of its paper."""
    paper = PAPER[request.node.callspec.params["context"]]
    (tmp_path / "plotly.js").write_text(get_plotlyjs(), "utf-8")
    path = tmp_path / "figures.html"
    head = '<!doctype html><meta charset="utf-8"><script src="plotly.js"></script>'
    path.write_text(f'{head}<body style="margin:0;background:{paper}">', "utf-8")
    page = context.new_page()
    page.set_viewport_size(SIZES[size])
    page.goto(path.as_uri())
    page.evaluate(_DRAW, {name: json.loads(each.to_json()) for name, each in figures.items()})
    return page, paper


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_words_stand_out_from_the_page_and_none_is_cut(context, drawn, figures, size, screenshots):
    page, paper = drawn
    scheme = next(name for name, colour in PAPER.items() if colour == paper)
    page.screenshot(path=screenshots / f"figures-{size}-{scheme}.png", full_page=True)
    for name in figures:
        words = page.evaluate(_TEXTS, name)
        assert len(words) > 8, name
        assert not {"null", "new text", "undefined", "NaN"} & {each["text"] for each in words}, name
        written = [each for each in words if not each["mark"]]
        assert {e["text"]: e["fill"] for e in written if contrast(e["fill"], paper) < 3.8} == {}, (
            name
        )
        assert [each["text"] for each in words if each["over"] > 1] == [], name
        for mark in (each for each in words if each["mark"]):
            assert "rgb(255, 255, 255)" in mark["shadow"], "dark with a light halo: on any cell"
            assert luminance(mark["fill"]) < 0.01
    assert "–" in [each["text"] for each in page.evaluate(_TEXTS, "words") if not each["mark"]]
    for name in ("scores", "few-scores"):
        assert not page.evaluate(_OVERLAPS, name), name
    assert page.evaluate("document.documentElement.scrollWidth") == SIZES[size]["width"]
    if size == "desktop":
        check_cells(page, paper)
    for background, opacity, tag in page.evaluate(_BACKS):
        assert background in ("rgba(0, 0, 0, 0)", "transparent")
        assert tag == "svg" or float(opacity) == 0


def check_cells(page, paper):
    """A cell at zero is nearly the page, and one with a large effect is red on it."""
    box = page.locator("#grid .heatmaplayer image").bounding_box()
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")

    def colour(column: int, row: int) -> str:
        """Of the edge of a cell: a mark is in the middle."""
        at = (column + 0.15) * box["width"] / 9, (5 - row + 0.3) * box["height"] / 6
        red, green, blue = picture.getpixel((int(box["x"] + at[0]), int(box["y"] + at[1])))
        return f"#{red:02x}{green:02x}{blue:02x}"

    assert 1.01 < contrast(colour(0, 0), paper) < 1.4
    assert contrast(colour(8, 5), paper) > 3
    red, _, blue = (int(colour(8, 5)[at : at + 2], 16) for at in (1, 3, 5))
    assert red > 3 * blue


@pytest.fixture
def opened(context, size, tmp_path):
    """Open the page of a sweep; it may ask for nothing and complain of nothing."""
    seen = []

    def open_page(sweep, **options):
        path = sweep.to_html(tmp_path / "sweep.html", **options)
        assert path.stat().st_size < 1_000_000
        watched = Watched(context.new_page()).watch()
        watched.page.set_viewport_size(SIZES[size])
        seen.append(watched)
        watched.page.goto(path.as_uri())
        return watched.page

    yield open_page
    assert [(each.outside, each.complaints) for each in seen] == [([], [])] * len(seen)


@pytest.mark.parametrize(
    ("context", "value"), [("light", "effect"), ("dark", "change")], indirect=["context"]
)
def test_the_page_of_a_sweep_fits_and_follows_the_scheme(
    context, opened, sweeps, size, value, request, screenshots
):
    scheme = request.node.callspec.params["context"]
    for name, sweep in sweeps.items():
        page = opened(sweep, value=value)
        saved = screenshots / f"sweep-{name}-{value}-{size}-{scheme}.png"
        page.screenshot(path=saved, full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
        corner = Image.open(saved).convert("RGB").getpixel((2, 2))
        assert (sum(corner) > 384) == (scheme == "light")
        ink = page.evaluate("getComputedStyle(document.body).color")
        assert contrast(ink, "#{:02x}{:02x}{:02x}".format(*corner)) > 7
        assert "null" not in page.inner_text("body")
        assert (page.locator("svg").count() == 1) == (name == "steer")


def test_texts_of_a_cell_are_shown_to_pointer_keyboard_and_finger(
    opened, sweeps, size, screenshots
):
    page = opened(sweeps["patch"])
    cells, shown = page.locator(".heat button"), page.locator(".heat button span:visible")
    assert shown.count() == 0
    cell = page.get_by_role("row", name="0 ").get_by_role("button").nth(7)
    cell.hover()
    said = shown.inner_text()
    assert "residual, block 0, ␣Rome@7" in said
    assert "words changed" in said
    assert shown.locator("del").all_inner_texts()[0] == "Rome"
    box = shown.bounding_box()
    assert box["y"] + box["height"] == pytest.approx(SIZES[size]["height"])
    assert 0 <= box["x"] <= box["x"] + box["width"] <= SIZES[size]["width"]
    page.screenshot(path=screenshots / f"sweep-hover-{size}.png")
    page.mouse.move(1, 1)
    assert shown.count() == 0
    cells.first.click()  # A tap focuses it.
    page.mouse.move(1, 1)
    assert "block 5, ␣What@0" in shown.inner_text().replace("What", "␣What")
    page.keyboard.press("Tab")
    assert "@1" in shown.inner_text()
    cell.hover()
    assert shown.count() == 1, "the pointer goes before the focus"


@pytest.mark.parametrize("size", ["phone"], indirect=True)
def test_a_wide_sweep_scrolls_in_its_own_box(opened, sweeps):
    page = opened(sweeps["steer"])
    wide, room = page.evaluate(
        "() => [...document.querySelectorAll('.heat div')].flatMap(e => "
        "[e.scrollWidth, e.clientWidth])"
    )
    assert wide > room
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("size", ["phone"], indirect=True)
def test_a_page_of_explanations_fits_a_phone_too(context, pair, tmp_path, size, screenshots):
    model, nla = pair
    with model.trace(PARIS):
        thoughts = nla.explain(nla.layer(model).output[0, -2:], tokens=[" Paris", " speak" * 30])
    page = context.new_page()
    page.set_viewport_size(SIZES[size])
    page.goto(thoughts.to_html(tmp_path / "thoughts.html").as_uri())
    page.screenshot(path=screenshots / "explanations-phone.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_of_a_small_sweep_by_hand(opened):
    page = opened(small_sweep())
    assert page.locator(".heat button").count() == 6


def test_a_title_of_any_number_of_lines_is_above_the_axes(context):
    page = context.new_page()
    page.evaluate(f"() => {{ {get_plotlyjs()} }}")
    counts = range(8)
    figures = {
        f"notes{count}": {
            "data": [{"x": [1, 2], "y": [1, 2]}],
            "layout": {"title": titled("A title", *["A note of one line"] * count), "height": 440},
        }
        for count in counts
    }
    page.evaluate(_DRAW, figures)
    for count in counts:
        title, top, axes = page.evaluate(
            """name => [".gtitle", ".svg-container", ".gridlayer"].map(each =>
              document.querySelector(`#${name} ${each}`).getBoundingClientRect())
              .map(box => [box.top, box.bottom])""",
            f"notes{count}",
        )
        assert top[0] <= title[0], (count, title, top, axes)
        assert title[1] <= axes[0] + 4, (count, title, top, axes)


def test_lines_stand_out_too():
    for colour in TEMPLATE["layout"]["colorway"]:
        assert min(contrast(colour, paper) for paper in PAPER.values()) > 2.9, colour
