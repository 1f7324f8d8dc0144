"""The words of grades: those of today, and those of version 0.1."""

import copy
import json
import math
import pickle
import warnings

import pytest

from nnsight_nla.core.trust import GRADES, WHOLE, Grade, Grounded, Trust, margin

FORMER = [("high", "strong"), ("medium", "partial"), ("low", "weak")]


@pytest.mark.parametrize(("former", "word"), FORMER)
def test_former_words_are_read(former, word):
    assert Grade(former) == word
    assert str.__str__(Grade(former)) == word
    assert Trust(former, 0.5).grade == word
    assert Trust(former, 0.5).line.startswith(f"reconstruction: {word} (")


@pytest.mark.parametrize(("former", "word"), FORMER)
def test_a_comparison_with_a_former_word_works_and_warns(former, word):
    said = rf"The grade '{former}' is called '{word}' now"
    with pytest.warns(DeprecationWarning, match=said):
        assert Grade(word) == former
    with pytest.warns(DeprecationWarning, match=said):
        assert former == Grade(word)
    with pytest.warns(DeprecationWarning, match=said):
        assert not (Grade(word) != former)  # noqa: SIM202
    with pytest.warns(DeprecationWarning, match=said):
        assert Grade("none") != former


def test_the_warning_points_at_the_comparison():
    for compare in (lambda: Grade("weak") == "low", lambda: Grade("weak") != "low"):
        with pytest.warns(DeprecationWarning, match="is called") as caught:
            compare()
        assert caught[0].filename == __file__


def test_words_of_today_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for word in GRADES:
            assert Grade(word) == word
            assert word == Grade(word)
            assert {Grade(word): 1}[word] == 1
            assert Grade(word) in GRADES
        assert Grade("weak") != "strong"
        assert Grade("weak") != 3
        assert Grade("weak") is not None


@pytest.mark.parametrize("word", ["", "High", "certain", "strong "])
def test_other_words_are_refused(word):
    with pytest.raises(ValueError, match="is no grade; expected one of strong, partial, weak, non"):
        Grade(word)
    with pytest.raises(ValueError, match="is no grade"):
        Trust(word, 0.5)


def test_a_grade_is_a_string_that_can_be_copied_and_stored():
    for each in (Grade("high"), Trust("high", 0.5).grade):
        assert json.dumps(each) == '"strong"'
        assert f"{each:>8}" == "  strong"
        assert pickle.loads(pickle.dumps(each)) == copy.deepcopy(each) == "strong"
        assert type(pickle.loads(pickle.dumps(each))) is Grade


def test_the_probability_is_that_of_the_whole_or_none():
    assert Trust("weak", 0.1).probability is None
    # The probability of a part is not that of the whole, wherever it stands.
    assert Trust("weak", 0.1, probabilities={"subject": 0.9}).probability is None
    label = Trust("weak", 0.1, probabilities={"subject": 0.9, WHOLE: 0.25}, population="bees")
    assert label.probability == 0.25
    assert label.lines[1] == "probability of being right: subject 0.90, whole 0.25"
    assert label.to_dict()["probabilities"] == {"subject": 0.9, "whole": 0.25}


def test_the_line_on_what_the_text_shows():
    assert Grounded(3, 2).line == "grounded: 2 of 3 quotes are in the text so far"
    assert Grounded(0, 0, "hive", True).line == (
        "grounded: next 'hive' is among the target's likeliest tokens"
    )
    both = Trust("weak", 0.1, grounded=Grounded(1, 1, "hive", False))
    assert both.lines == (
        both.line,
        "grounded: 1 of 1 quotes are in the text so far; next 'hive' is not among the target's "
        "likeliest tokens",
    )


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_margin_needs_finite_controls(value):
    assert margin(0.9, 0.1, value) is None
    assert margin(value, 0.1) is None
    assert margin(0.9, None, None) is None


def test_a_label_whose_controls_are_not_finite_is_strict_json():
    label = Trust("none", math.nan, math.nan, None, math.nan, math.inf, None, reason="no control")
    tree = json.loads(json.dumps(label.to_dict(), allow_nan=False))
    assert (tree["cosine"], tree["others"], tree["null"]) == (None, None, None)
    assert (tree["grade"], tree["reason"]) == ("none", "no control")
