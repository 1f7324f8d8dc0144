"""What an explanation says comes next, against the target's tokens."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla.evaluation.grounding.next_token import (
    agrees,
    name_of,
    probability,
    says_next,
    spelled,
)
from nnsight_nla.evaluation.grounding.rows import GroundedRow
from tests.evaluation.grounding.test_mentions import BOMBS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Next: hive", ["hive"]),
        (
            "About bees.\nLast: the\nNext: hive | flowers | the field",
            ["hive", "flowers", "the field"],
        ),
        ("After: speak. Next: French.", ["French"]),
        ("Next: .", ["."]),
        ("Next: ...", ["..."]),
        ("Next token: hive", ["hive"]),
        ("next words : hive", ["hive"]),
        ("Next: unsure.", []),
        ("Next: Unknown", []),
        ('Next: "a" or "the"', ["a", "the"]),
        ('Next: "hive", as Anna says in 1984.', ["hive"]),
        ("Next: 's", ["'s"]),
        ('Next: "', ['"']),
        ("Next:", []),
        ("Next:   \n", []),
        ('The next word is likely "Paris" or "Rome".', ["Paris", "Rome"]),
        ("A verb follows, such as `fly`. It ends with 'home'.", ["fly"]),
        ("The bees' next word is 'hive'. The dogs' end.", ["hive"]),
        ('It says "bees". Something else.', []),
        ("It is expected to continue with “en été”!", ["en été"]),
        ('At 3.5 km the text is likely to say "km". The "end".', ["km"]),
        ('Predicted: "Stop!" or "Go."', ["Stop!", "Go."]),
        ('next "" then', []),
        ('predicts "a" and "a"', ["a"]),
    ],
)
def test_what_it_says(text, expected):
    assert says_next(text) == expected


@pytest.mark.parametrize(
    ("said", "tokens", "expected"),
    [
        (["hive"], (" hive", "."), True),
        (["Hive"], (" hive",), True),
        (["hive"], (" hi",), True),  # A token may begin a word.
        (["hive"], ("h",), False),
        (["hi"], (" hive",), False),
        (["the hive"], (" the",), True),
        (["bees", "hive"], (" hive",), False),  # Only the first counts.
        (["period"], (".",), True),
        (["."], (".",), True),
        (["(bar)"], (" |",), True),
        (["(line)"], ("\n\n",), True),
        (["(space)"], ("  ",), True),
        (["end"], ("<|endoftext|>",), True),
        (["(end)"], ("<|im_end|>",), True),
        (["end"], (" ending",), False),
        ([], (" hive",), False),
        (["hive"], (), False),
        (["12"], ("1",), False),
        (["straße"], (" STRASSE",), True),
    ],
)
def test_whether_it_agrees(said, tokens, expected):
    assert agrees(said, tokens) is expected


def test_the_probability_is_that_of_all_tokens_that_agree():
    row = GroundedRow(
        "a", "b", next_tokens=(" hive", " Hive", " field"), probabilities=(0.5, 0.25, 0.125)
    )
    assert probability(["hive"], row) == 0.75
    assert probability(["bees"], row) == 0
    assert probability([], row) is None
    assert probability(["hive"], GroundedRow("a", "b", next_tokens=(" hive",))) is None


def test_spelling():
    assert [spelled(each) for each in (" a", " |", "\n", " ", "", "<|x|>")] == [
        "a", "(bar)", "(line)", "(space)", "(space)", "(end)",
    ]  # fmt: skip
    assert [name_of(each) for each in (".", ",", "!", "?", "a")] == [
        "period", "comma", "bang", "question", "a",
    ]  # fmt: skip


@given(st.text() | st.text("next:|\"'“”`. \n", max_size=60))
def test_no_text_breaks_it(text):
    for each in says_next(text):
        assert each.strip() == each != ""
    assert isinstance(agrees(says_next(text), (" a", text)), bool)


@given(st.text("abc", min_size=1, max_size=8))
def test_a_line_names_the_token_that_it_was_made_of(word):
    assert agrees(says_next(f"About x.\nNext: {spelled(' ' + word)}"), (" " + word,))


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.parametrize("before", ["", "What comes next", "Next: "])
def test_long_texts_take_no_long_time(name, before):
    start = time.process_time()
    says_next(before + BOMBS[name])
    assert time.process_time() - start < 2
