"""Characters of several tokens: what belongs together, on a tokenizer with a token per byte."""

import pytest

from nnsight_nla.reading.characters import whole


class Bytes:
    """A tokenizer of which each byte is a token."""

    def decode(self, ids):
        return bytes(ids).decode("utf-8", errors="replace")


def groups(text):
    ids = list(text.encode()) if isinstance(text, str) else list(text)
    tokens = [Bytes().decode([each]) for each in ids]
    return whole(Bytes(), ids, tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ab", [None, None]),
        ("a界b", [None, "界", "", "", None]),
        ("界界", ["界", "", "", "界", "", ""]),
        ("👍🏽", ["👍🏽", *[""] * 7]),
        ("👩\u200d👧", ["👩\u200d👧", *[""] * 10]),
        ("a\u200db", [None, "\u200d", "", "", None]),
        ("😀\u200d", ["😀\u200d", *[""] * 6]),
        ("\r\n", [None, None]),
        ("e\u0301!", ["e\u0301", "", "", None]),
        (b"a\xe7b", [None, None, None]),
        (b"\xe7\x95", [None, None]),
        ("", []),
    ],
)
def test_what_is_one_character(text, expected):
    assert groups(text) == expected


@pytest.mark.parametrize(
    "character",
    [
        "🇫🇷", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "👍🏽", "❤️", "1️⃣",
        "👩\u200d👩\u200d👧\u200d👦", "👩🏽\u200d❤️\u200d💋\u200d👨🏿", "🏳️\u200d🌈", "é", "e\u0301",
        "Z\u0300\u0301\u0302", "ก็", "각", "\u1112\u1161\u11ab", "नि", "巴",
    ],
)  # fmt: skip
def test_a_character_is_one_group_also_next_to_itself(character):
    bytes_each = len(character.encode())
    group = [character, *[""] * (bytes_each - 1)]
    assert groups(f"a {character}{character} b") == [None] * 2 + group * 2 + [None] * 2


def test_so_are_tokens_of_whole_code_points():
    """As a tokenizer with a token for each: none is broken, and only together are they a sign."""
    tokens = ["I", " ", "🇫", "🇷", "🇮", "🇹", "👍", "🏽", "e", "\u0301", "\u0301s", "."]
    assert whole(None, range(len(tokens)), tokens) == [
        None, None, "🇫🇷", "", "🇮🇹", "", "👍🏽", "", "e\u0301\u0301s", "", "", None,
    ]  # fmt: skip


def test_a_heap_of_accents_is_not_one_chip_of_a_thousand_tokens():
    found = whole(None, range(1000), ["a", *["\u0301"] * 999])
    assert max(len(text or "") for text in found) == 64


def test_nothing_is_lost():
    text = "Paris 巴黎 🇫🇷 é!"
    tokens = [Bytes().decode([each]) for each in text.encode()]
    found = zip(tokens, groups(text), strict=True)
    assert "".join(token if group is None else group for token, group in found) == text
