"""Statements of labels of a fixed form, compared by a programme."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla import NLAError
from nnsight_nla.evaluation.grounding.forms import (
    FORMS,
    Line,
    form_of,
    known_truth,
    load_truth,
    truth_of,
)
from nnsight_nla.evaluation.grounding.rows import GroundedRow
from nnsight_nla.tiny.documents import Truth
from nnsight_nla.tiny.explanations import SLOTS, explain, parse

TINY = explain(Truth("Paris", "cheerful", "language"), "speak", "French")
NOBODY = explain(Truth(None, "neutral", "opening"), "The", "unsure")
SMOLLM2 = "About bees.\nLast: the < to\nNext: hive | flowers | (bar)\nMentions: queen, honey"
NEXT = FORMS["smollm2"][2]


def row(label):
    return GroundedRow("a", "text", label=label)


def test_a_label_agrees_with_itself_in_every_statement():
    for label in (TINY, NOBODY, SMOLLM2):
        truth = known_truth([row(None), row(label)])
        assert set(truth(label, label).values()) == {True}
        assert set(truth(None, label).values()) == set(truth("", label).values()) == {False}


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        (("Paris", "Rome"), {"subject"}),
        (("France", "Italy"), {"attribute"}),
        (("cheerful", "calm"), {"tone"}),
        (("Stating the language", "Stating the food"), {"stage"}),
        (("After: speak", "After: eat"), {"current"}),
        (("Next: French", "Next: crepes"), {"next"}),
    ],
)
def test_a_wrong_word_of_the_tiny_form_is_one_wrong_statement(change, wrong):
    text = TINY.replace(*change)
    assert text != TINY
    found = known_truth([row(TINY)])(text, TINY)
    assert {name for name, right in found.items() if not right} == wrong
    # As the tiny world's own parser says it.
    slots = {slot for slot in SLOTS if getattr(parse(text), slot) != getattr(parse(TINY), slot)}
    assert slots == wrong


@pytest.mark.parametrize(
    ("said", "right"),
    [
        ("Next: hive", True),
        ("Next: flowers | hive", True),
        ("Next: (bar)\nMentions: x", True),
        ("Next: honey", False),
        ("Next: hive | flowers", True),
        ("Next: ", False),
        ("Next: queen, honey", False),
        ("hive", False),
        (" ", False),
    ],
)
def test_it_is_enough_to_state_one_of_the_alternatives(said, right):
    assert NEXT.right(said, SMOLLM2) is right


@pytest.mark.parametrize(
    "label", ["Next: ", "Next:", "", "Next: \nMentions: x", "Next: a\x0cb | c"]
)
def test_odd_labels_are_compared_too(label):
    assert NEXT.right("Next: hive", label) is False
    assert NEXT.right(None, label) is False


def test_a_label_agrees_with_itself_whatever_line_breaks_it_has():
    label = "Next: a\u2028b\x0c | c"
    assert NEXT.right("Next: a\u2028b\x0c", label)
    assert NEXT.right("Next: c", label)


def test_a_cut_off_explanation_is_right_in_what_it_says():
    found = known_truth([row(SMOLLM2)])("About bees.\nLast: the < to\nNe", SMOLLM2)
    assert found == {"subject": True, "last word": True, "next": False, "content": False}


def test_labels_of_no_known_form_have_no_truth():
    for labels in ([], [None], [""], ["A text on bees."], ["About bees.\nLast: the"]):
        assert form_of([row(each) for each in labels]) is None
        assert known_truth([row(each) for each in labels]) is None
    assert truth_of(None) is None
    # One odd label among others is left out, also if it comes first.
    assert form_of([row("odd"), row(TINY)]) is FORMS["tiny"]
    assert known_truth([row(SMOLLM2)])(SMOLLM2, "A text on bees.") is None


def test_a_form_of_your_own():
    form = (Line("kind", "Kind: ", (";",)), Line("place", "in ", ()))
    truth = truth_of(form)
    label = "Kind: cow; in Rome"
    assert truth("Kind: cow; in Oslo", label) == {"kind": True, "place": False}
    assert truth("cow", "Kind: ") is None


texts = st.text("AbouLastNex:. <|\n\u2028é😀", max_size=40)


@given(st.none() | texts, texts, st.sampled_from([*FORMS["smollm2"], *FORMS["tiny"]]))
def test_no_text_breaks_a_line(text, label, line):
    assert line.right(text, label) in (True, False)
    found = line.find(label)
    assert found is None or found in label


def test_functions_are_imported_by_name():
    truth = load_truth("nnsight_nla.tiny.explanations:parse")
    assert truth is parse


@pytest.mark.parametrize(
    "name", ["", "math", "math:", "lost:x", "math:lost", ".math:pi", "math:pi", ":x", "a:b:c"]
)
def test_a_function_that_is_not_there_is_named(name):
    with pytest.raises(NLAError, match=r"cannot be imported .*expected MODULE:FUNCTION"):
        load_truth(name)
    assert math.pi
