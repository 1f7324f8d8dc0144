"""Heat maps and curves as HTML and SVG."""

import re
from xml.etree import ElementTree

from nnsight_nla.view.chart import STYLE, Cell, Dot, Line, _ticks, curves, heat_map
from nnsight_nla.view.escaping import Html

HOSTILE = "<img src=x onerror=alert(1)>\"'"
CELLS = {
    ("0", "a"): Cell(1.0, "●", Html("all <b>of</b> it")),
    ("0", "b"): Cell(-0.42, "○", Html("")),
    ("1", "a"): Cell(None, "–", Html("none")),
}


def drawn(cells=CELLS, across=("a", "b"), **options):
    given = {
        "titles": ("block", "position"), "caption": "effect", "most": "2", "signed": True,
    } | options  # fmt: skip
    return heat_map(("0", "1"), across, cells, **given)


def test_rows_go_upwards_and_a_level_is_a_class():
    body = drawn().partition("<tbody>")[2]
    assert re.findall(r"<tr><th scope=\"row\">(\d)</th>", body) == ["1", "0"]
    assert "<td class=p10><button>●<span>all <b>of</b> it</span></button></td>" in body
    assert "<td class=n4>○</td>" in body, "a cell without details is no button"
    assert "<td><button>–<span>none</span></button></td><td></td>" in body


def test_every_class_has_a_rule_and_zero_is_the_same_faint_grey():
    for name in (".n10", ".n1", ".p0", ".p10", ".share .p10"):
        assert f"{name}{{background:rgba(" in STYLE
    zeros = re.findall(r"\.[np]0\{background:(.*?)\}", STYLE)
    assert len(zeros) == 3
    assert set(zeros) == {"rgba(128,128,128,0.13)"}


def test_the_key_names_both_ends():
    assert "−2" in drawn()
    assert "−2" not in drawn(signed=False)


def test_everything_is_escaped():
    cells = {(HOSTILE, HOSTILE): Cell(0.0, HOSTILE, Html("x"))}
    page = heat_map(
        [HOSTILE], [HOSTILE], cells, titles=(HOSTILE, HOSTILE), caption=HOSTILE, most=HOSTILE,
        signed=True,
    )  # fmt: skip
    dots = [Dot(0, 1, True, HOSTILE), Dot(1, 2, False, HOSTILE)]
    page += curves([Line(HOSTILE, dots, dots, dots, HOSTILE)], titles=(HOSTILE, HOSTILE))
    assert "<img" not in page
    assert page.count("&lt;img") == 16


def test_a_curve_is_an_svg_with_a_title_for_each_point():
    dots = [Dot(x, y, y > 0, f"at {x}") for x, y in ((-1, -0.5), (0, 0.0), (2, 1.5))]
    edge = [Dot(x, 0.1, True, "") for x in (-1, 2)]
    made = curves([Line("a", dots, edge, edge, "the band"), Line("b", dots)], titles=("x", "y"))
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", made).group())
    assert [each[0].text for each in svg.iter("circle")] == ["at -1", "at 0", "at 2"] * 2
    assert [each.attrib["fill"] for each in svg.iter("circle")][:3] == [
        "Canvas",
        "Canvas",
        "#6366f1",
    ]
    assert len(list(svg.iter("polygon"))) == 1
    heights = [float(each.attrib["cy"]) for each in svg.iter("circle")][:3]
    assert heights == sorted(heights, reverse=True), "larger is higher"
    for each in svg.iter("circle"):
        assert 0 <= float(each.attrib["cx"]) <= 360
        assert 0 <= float(each.attrib["cy"]) <= 220


def test_a_flat_curve_and_none():
    assert curves([], titles=("x", "y")) == ""
    assert "<circle" in curves([Line("a", [Dot(1, 0.0, True, "")])], titles=("x", "y"))
    assert _ticks([0.0, 0.0]) == [0.0, 1.0]
    assert _ticks([1e-9, 2e-9])[0] == 1e-9
    assert _ticks([-3e5, 1.0])[-1] == 1e5
