"""The explanation in a verbalizer's reply, and its snippets."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from nnsight_nla.checkpoint.reply import extract, proper, snippets, wrap

REPLIES = [
    ("<explanation>\nAbout Paris.\n</explanation>", ("About Paris.", True)),
    ("<explanation>About Par", ("About Par", False)),
    ("About Paris.</explanation> and more", ("About Paris.", True)),
    ("About Paris.", ("About Paris.", False)),
    ("Sure! <explanation>A</explanation>", ("A", True)),
    ("<explanation>A</explanation><explanation>B</explanation>", ("A", True)),
    ("<explanation></explanation>", ("", True)),
    ("<explanation>", ("", False)),
    ("", ("", False)),
    ("<explanation> 1 < 2 </explan", ("1 < 2 </explan", False)),
    ("<EXPLANATION>A</EXPLANATION>", ("<EXPLANATION>A</EXPLANATION>", False)),
]


@pytest.mark.parametrize(("raw", "expected"), REPLIES)
def test_extract(raw, expected):
    assert extract(raw) == expected


SNIPPETS = [
    ("", ()),
    (" \n\n \n", ()),
    ("One.", ("One.",)),
    ("One.\n\nTwo.", ("One.", "Two.")),
    ("One.\n  \n\n\nTwo.\n", ("One.", "Two.")),
    ("One.\nTwo.", ("One.", "Two.")),
    ("One,\nstill one.\n\nTwo.", ("One,\nstill one.", "Two.")),
    ("One.\r\n\r\nTwo.", ("One.", "Two.")),
    ("\n\nOne.\nTwo.\n\n", ("One.", "Two.")),
]


@pytest.mark.parametrize(("text", "expected"), SNIPPETS)
def test_snippets(text, expected):
    assert snippets(text) == expected


@given(st.text(alphabet="ab \n<>", max_size=30).filter(lambda text: "<" not in text))
def test_what_stands_between_the_tags_comes_out(text):
    assert extract(f"<explanation>{text}</explanation>") == (text.strip(), True)
    assert all(part and part == part.strip() for part in snippets(text))
    assert "".join("".join(snippets(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("<explanation>A</explanation>", None),
        ("Sure! <explanation>A</explanation> Done.", None),
        ("A</explanation>", "the reply has no <explanation> tag"),
        ("", "the reply has no <explanation> tag"),
        ("<explanation>A", "the reply has no closing </explanation> tag"),
        ("</explanation><explanation>A", "the reply has no closing </explanation> tag"),
        ("<explanation>A<explanation>B</explanation>", "the reply has <explanation> twice"),
        ("<explanation> \n</explanation>", "the explanation is empty"),
    ],
)
def test_why_a_reply_is_not_well_formed(raw, reason):
    assert proper(raw) == reason


@given(st.text(max_size=30).filter(lambda text: text.strip() and "<" not in text))
def test_a_wrapped_explanation_is_a_well_formed_reply(text):
    assert proper(wrap(text)) is None
    assert extract(wrap(text)) == (text.strip(), True)
