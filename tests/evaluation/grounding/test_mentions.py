"""Quotes, names and numbers of an explanation, and where they occur."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla.evaluation.grounding.mentions import mentions, place
from nnsight_nla.evaluation.grounding.rows import GroundedRow

ROW = GroundedRow("a", "Anna's bees, 12.5 of “them”,\n fly  home", ", says Émile Zola in 1984.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("Anna", []),  # The first word of a sentence is capitalised anyway.
        ("about Anna Karenina and Rome", ["Anna Karenina", "Rome"]),
        ("the state of New York's park", ["New York's"]),
        ("quotes “fly home” and «loin d'ici» and `x = 1`", ["fly home", "loin d'ici", "x = 1"]),
        ("it's the bee's 'own hive' isn't it", ["own hive"]),
        ('"twice" and "twice"', ["twice"]),
        ('"..." and "a"', []),
        ("on 2024-05-01 at 12:30, 1,000.5 of 3", ["2024-05-01", "12:30", "1,000.5", "3"]),
        ('he said "Rome', []),
        ("a CNN I", []),
        ("in Москва and 東京", ["Москва"]),
        ("٣ of them", ["٣"]),
    ],
)
def test_what_is_found(text, expected):
    assert mentions(text) == expected


@pytest.mark.parametrize(
    ("mention", "expected"),
    [
        ("fly home", "so far"),
        ("BEES", "so far"),
        ("bee", "nowhere"),
        ("Anna’s", "so far"),
        ('"them"', "so far"),
        ("12.5", "so far"),
        ("2.5", "nowhere"),
        ("...", "nowhere"),
        ("émile zola", "later"),
        ("home, says", "later"),
        ("198", "nowhere"),
        ("(", "nowhere"),
        (".*", "nowhere"),
        ("fly home.", "so far"),
    ],
)
def test_where_it_occurs(mention, expected):
    assert place(mention, ROW) == expected


def test_a_part_of_a_word_before_the_whole_one_does_not_hide_it():
    assert place("bee", GroundedRow("a", "beeswax of a bee")) == "so far"


def test_an_empty_text_has_nothing():
    assert place("bees", GroundedRow("a", "", "")) == "nowhere"
    assert place("bees", GroundedRow("a", "", "bees")) == "later"


@given(st.text())
def test_no_text_breaks_it_and_each_mention_is_found_in_its_own_text(text):
    for each in mentions(text):
        assert place(each, GroundedRow("a", f"{text} end")) in ("so far", "nowhere")


WORDS = st.lists(st.sampled_from(["a", "b", "ab", "Straße", "1.5", "a-b"]))


@given(WORDS, WORDS, WORDS.filter(bool))
def test_as_lists_of_words_say(so_far, rest, mention):
    def has(words):
        return any(words[i : i + len(mention)] == mention for i in range(len(words)))

    row = GroundedRow("a", " ".join(so_far), " ".join(["", *rest]))
    expected = "so far" if has(so_far) else "later" if has(so_far + rest) else "nowhere"
    said = f"{'  '.join(mention)}.".upper()
    # A part of "a-b" is a word, too.
    assert place(said, row) == expected or "a-b" in so_far + rest


BOMBS = {
    "letters": "a" * 100_000,
    "capitals": "A" * 100_000,
    "words": "ab " * 33_000,
    "names": "the " + "Ab " * 33_000,
    "almost names": "the " + "A1 " * 33_000,
    "one name": "the A" + "1-'" * 33_000,
    "digits": "1." * 50_000,
    "quotes": '"' * 100_000,
    "open quotes": "“" * 100_000,
    "guillemets": "« a" * 33_000,
    "apostrophes": " 'a" * 33_000,
    "apostrophes in words": "a'" * 50_000,
    "backticks": "`" * 99_999,
    "dots": ". " * 50_000,
    "spaces": "next" + " " * 100_000,
    "lines": "next:" + "\n" * 100_000,
    "next": "next " * 20_000,
    "next quotes": "next “" * 17_000,
    "next apostrophes": "next 'a" * 15_000,
    "expects": "it expects . " * 8_000 + '"',
}


@pytest.mark.parametrize("name", BOMBS)
def test_long_texts_take_no_long_time(name):
    start = time.process_time()
    found = mentions(BOMBS[name])
    row = GroundedRow("a", BOMBS[name], BOMBS[name])
    for each in found[:20]:
        place(each, row)
    assert time.process_time() - start < 5
