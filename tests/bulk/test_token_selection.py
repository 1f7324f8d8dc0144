"""Which tokens of a document are read."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nnsight_nla import NLAError
from nnsight_nla.bulk.token_selection import CLASSES, TokenizedText, parse_positions, tokenize

WORDS = ("In", " 1999", ",", " Ann", " paid", " 3.5", " euros", ".", "\n", "Why", "?")


def located(tokens: tuple[str, ...]) -> TokenizedText:
    ends, text = [], ""
    for token in tokens:
        text += token
        ends.append(len(text))
    return TokenizedText(text, tuple(range(len(tokens))), tokens, tuple(ends))


def chosen(spec, tokens=WORDS, name="doc", **options) -> list[str]:
    return [
        tokens[place] for place in parse_positions(spec, **options).choose(located(tokens), name)
    ]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", list(WORDS)),
        ("last", ["?"]),
        ("every:4", [" Ann", "."]),
        (4, [" Ann", "."]),
        ("regex:Ann paid", [" paid"]),
        ("regex:aid 3", [" 3.5"]),
        ("regex:nothing", []),
        ("class:number", [" 1999", " 3.5"]),
        ("class:capital", ["In", " Ann", "Why"]),
        ("class:punctuation", [",", " 3.5", ".", "?"]),
        ("class:sentence", [".", "?"]),
        ("class:newline", ["\n"]),
        ("class:word", ["In", " 1999", " Ann", " paid", " 3.5", " euros", "Why"]),
    ],
)
def test_each_form_by_hand(spec, expected):
    assert chosen(spec) == expected


def test_the_first_positions_can_be_left_out():
    assert chosen("all", skip=9) == ["Why", "?"]
    assert chosen("class:capital", skip=1) == [" Ann", "Why"]
    assert chosen("last", skip=11) == []


@given(
    length=st.integers(0, 40), count=st.integers(1, 9), skip=st.integers(0, 12), seed=st.integers()
)
def test_random_places_are_that_many_distinct_and_the_documents_own(length, count, skip, seed):
    text = located(("a",) * length)
    selection = parse_positions(f"random:{count}", skip=skip, seed=seed)
    found = selection.choose(text, "doc")
    assert found == sorted(set(found))
    assert all(skip <= place < length for place in found)
    assert len(found) == min(count, max(length - skip, 0))
    assert selection.choose(text, "doc") == found


def test_random_places_differ_between_documents_and_seeds():
    text = located(("a",) * 200)
    draws = [
        parse_positions("random:5", seed=seed).choose(text, name)
        for seed in (0, 1)
        for name in "ab"
    ]
    assert len({tuple(draw) for draw in draws}) == 4


@given(st.lists(st.text("ab1. ", min_size=1, max_size=3), min_size=1, max_size=12))
def test_a_match_is_read_at_the_token_that_holds_its_last_character(tokens):
    text = located(tuple(tokens))
    owner = [place for place, token in enumerate(tokens) for _ in token]
    for pattern in (CLASSES["word"], r"\d", r"a[ .]*b"):
        ends = {owner[match.end() - 1] for match in re.finditer(pattern, text.text)}
        assert parse_positions(f"regex:{pattern}").choose(text, "doc") == sorted(ends)


@pytest.mark.parametrize(
    "spec", ["some", "every:0", "every:x", "class:verb", "regex:", "last:2", ""]
)
def test_an_unknown_choice_lists_the_known_ones(spec):
    with pytest.raises(NLAError, match=r"expected all, last, every:N, random:N, regex:PATTERN, or"):
        parse_positions(spec)


def test_a_broken_expression_is_named():
    with pytest.raises(
        NLAError, match=r"'regex:\(': the regular expression is not valid: missing \)"
    ):
        parse_positions("regex:(")


def test_tokens_are_found_in_the_text_as_the_target_reads_it(model):
    text = "What a lovely day!  People in Paris speak"
    found = tokenize(model, text)
    assert found.text == text
    assert found.ids == tuple(model.tokenizer(text)["input_ids"])
    assert text[: found.ends[-1]] == text
    place = parse_positions("regex:Paris").choose(found, "doc")
    assert [found.tokens[each].strip() for each in place] == ["Paris"]
    assert text[: found.ends[place[0]]].endswith("in Paris")


def test_a_tokenizer_without_offsets_is_read_through_its_tokens(model, monkeypatch):
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    found = tokenize(model, "People in Paris speak")
    assert found.text == "".join(found.tokens)
    place = parse_positions("class:capital").choose(found, "doc")[-1]
    assert found.tokens[place].strip() == "Paris"
