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
        (b"a\xe7b", [None, None, None]),
        (b"\xe7\x95", [None, None]),
        ("", []),
    ],
)
def test_what_is_one_character(text, expected):
    assert groups(text) == expected


def test_nothing_is_lost():
    text = "Paris 巴黎 🇫🇷 é!"
    tokens = [Bytes().decode([each]) for each in text.encode()]
    found = zip(tokens, groups(text), strict=True)
    assert "".join(token if group is None else group for token, group in found) == text
