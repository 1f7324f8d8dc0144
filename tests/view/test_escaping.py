"""Escaping: what hides, or turns the text around, is spelled out."""

import unicodedata

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nnsight_nla.view.escaping import readable, visible

TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


def test_by_hand():
    assert visible("a\u202e\ud800\u2028 b") == "a\\u202e\\ud800\\u2028␣b"
    assert visible("\n\t") == "↵⇥"
    assert visible("\u200d") == "\\u200d"
    assert readable("a\r\n\t\u200d", 10) == "a\\u000d\n\t\u200d"


@pytest.mark.parametrize("text", ["שלום", "नमस्ते", "㈎", "é", "x <b>"])
def test_other_scripts_are_left_as_they_are(text):
    assert readable(text, 100) == text


def test_a_long_text_is_cut_and_the_others_are_counted():
    assert readable("x" * 1005, 5) == "xxxxx… (1,000 more characters)"
    assert readable("xxxxx", 5) == "xxxxx"


@given(TEXT)
def test_nothing_invisible_is_left(text):
    hidden = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
    assert hidden.isdisjoint(map(unicodedata.category, visible(text)))
    kept = [char for char in readable(text, 100) if char not in "\n\t\u200c\u200d"]
    assert hidden.isdisjoint(map(unicodedata.category, kept))
    assert visible(text).encode("utf-8").decode("utf-8") == visible(text)
