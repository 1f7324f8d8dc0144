"""A doctor's report as bars."""

import json

from nnsight_nla.doctor.report import Diagnosis, Finding, Variant
from nnsight_nla.view.figure import TEMPLATE

FINDINGS = (
    Finding(
        "layer",
        "loses",
        (
            Variant("3", True, 1.0, 0.1, 0.4, -2.0, "a <b>\ntext"),
            Variant("1", False, 1.0, 0.9, 0.9, -0.5, "better"),
            Variant("2", False, error="it has no <marker>"),
        ),
        best="1",
    ),
    Finding("template", "not tried", (Variant("its own", True, 1.0, 0.1, 0.4, -2.0),)),
)


def report(judge):
    return Diagnosis(FINDINGS, ("layer",), None, True, 4, judge)


def test_the_declared_value_is_of_another_colour_than_what_was_tried():
    declared, tried = report("reconstructor").plot().data
    assert (list(declared.y), list(declared.x)) == (["layer: 3"], [0.4])
    assert (list(tried.y), list(tried.x)) == (["layer: 1", "layer: 2"], [0.9, None])
    assert declared.marker.color != tried.marker.color
    assert list(declared.customdata) == ["a &lt;b&gt;<br>text"]
    assert list(tried.customdata) == ["better", "it has no &lt;marker&gt;"]


def test_without_a_reconstructor_it_shows_what_the_verdict_rests_on():
    figure = report("likelihood").plot()
    assert list(figure.data[0].x) == [-2.0]
    assert figure.layout.xaxis.title.text == "likelihood, nats per token"


def test_a_value_that_could_not_be_run_says_why_and_the_order_is_the_reports():
    figure = report("reconstructor").plot()
    assert [(each.y, each.text) for each in figure.layout.annotations] == [
        ("layer: 2", "it has no &lt;marker&gt;")
    ]
    assert list(figure.layout.yaxis.categoryarray) == ["layer: 3", "layer: 1", "layer: 2"]
    assert (
        figure.layout.title.text.replace("<br>", " ")
        == "The declared layer loses; the evidence supports 1."
    )
    assert figure.layout.template.layout.font.color == TEMPLATE["layout"]["font"]["color"]
    json.loads(figure.to_json())
