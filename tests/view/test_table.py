"""The tables: what they show, and that no text can break out of them."""

from html.parser import HTMLParser

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from nnsight_nla import view
from nnsight_nla.view.escaping import Html
from nnsight_nla.view.table import chip, table


def record(**changes) -> dict:
    fields = {
        "index": [0],
        "token": None,
        "position": None,
        "text": "A city.",
        "warnings": [],
        "error": None,
    }
    return {**fields, **changes}


class Page(HTMLParser):
    """The tags of a page in order, its attributes, and its text by cell."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cells: list[str] = []
        self.depth = 0
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag in ("td", "th", "caption"):
            self.cells.append("")
        if tag == "br":
            self.cells[-1] += "\n"
        else:
            self.depth += 1

    def handle_endtag(self, tag):
        self.depth -= 1

    def handle_data(self, data):
        self.cells[-1] += data

    def handle_comment(self, data):
        self.tags.append("!--")

    def handle_decl(self, decl):
        self.tags.append("!")

    def handle_pi(self, data):
        self.tags.append("?")


KNOWN = {"table", "caption", "thead", "tbody", "tr", "th", "td", "code", "br", "div", "em"}

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></tr></table><h1>",
    "<!-- ", "-->", "<![CDATA[", "<?php", "&lt;b&gt; &amp;lt;", "' onclick='x", '" style="x',
    "a\u202eb\u202c", "zero\u200bwidth\ufeff", "nul\x00bell\x07", "{{7*7}} ${x} `y`",
    "<explanation>", "1 < 2 && 3 > 2",
]  # fmt: skip


def test_a_table_of_bare_rows():
    html = view.explanation([record(index=[0, 1]), record(index=[1, 0], text="One.\nTwo.")])
    page = Page(html)
    assert page.cells == ["index", "explanation", "0, 1", "A city.", "1, 0", "One.\nTwo."]
    assert page.depth == 0


def test_a_table_of_placed_rows():
    rows = [record(token=" Paris", position=7), record(token="\n\t", position=8)]
    page = Page(view.explanation(rows))
    assert page.cells[:3] == ["position", "token", "explanation"]
    assert page.cells[3:6] == ["7", "␣Paris", "A city."]
    assert page.cells[6:8] == ["8", "↵⇥"]
    untold = Page(view.explanation([record(position=3)]))
    assert untold.cells[3:] == ["3", "", "A city."]


def test_errors_and_warnings_are_said():
    rows = [
        record(text=None, error="is zero, it has no direction"),
        record(warnings=["position 0: noisy", "quotes 'x'"]),
    ]
    page = Page(view.explanation(rows))
    assert page.cells[3] == "no text: this vector is zero, it has no direction"
    assert page.cells[5] == "A city.⚠ position 0: noisy⚠ quotes 'x'"


def test_no_rows():
    assert Page(view.explanation([])).cells == ["index", "explanation"]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text(text):
    row = record(token=text, position=0, text=text, warnings=[text])
    page = Page(view.explanation([row]))
    assert set(page.tags) <= KNOWN
    assert page.attributes <= {"style", "scope", "dir"}
    assert page.depth == 0
    assert page.cells[-1] == f"{text}⚠ {text}"
    failed = Page(view.explanation([record(text=None, error=text)]))
    assert failed.cells[-1] == f"no text: this vector {text}"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("\u200b", "\\u200b"),
        ("\ufeff", "\\ufeff"),
        ("\x00", "\\u0000"),
        ("\r", "\\u000d"),
        (" שלום", "␣שלום"),
        ("é", "é"),
        ("㈎", "㈎"),
    ],
)
def test_a_token_hides_nothing(token, shown):
    assert Page(view.explanation([record(token=token, position=0)])).cells[4] == shown


def test_text_of_either_direction_stays_in_its_cell():
    html = view.explanation([record(text="שלום \u202e abc")])
    assert html.count('<td dir="auto"') == html.count("<td") == 2


def test_nothing_is_fetched():
    html = view.explanation([record(token="x", position=1, warnings=["w"])])
    for outside in ("http", "src=", "href=", "url(", "<script", "<link", "@import", " id="):
        assert outside not in html


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30), st.text(max_size=10))
def test_any_text_comes_back_out(text, token):
    page = Page(view.explanation([record(token=token, position=1, text=text)]))
    assert set(page.tags) <= KNOWN
    assert len(page.cells) == 6
    assert page.cells[5] == "\n".join(text.splitlines())


def test_the_trust_label_is_below_the_text():
    row = record(trust="reconstruction: strong <b>", warnings=["w"])
    assert Page(view.explanation([row])).cells[-1] == "A city.reconstruction: strong <b>⚠ w"


def claim(text="x", carries=0.5, alone=0.25) -> dict:
    return {"text": text, "carries": carries, "alone": alone}


def test_the_table_of_claims():
    html = view.claims({"cosine": 0.5, "parts": [claim("one", 0.4), claim("two", -0.1)]})
    page = Page(html)
    assert page.cells == [
        "cosine 0.500; change without each part", "carries", "", "alone", "part",
        "+0.400", "", "0.250", "one", "-0.100", "", "0.250", "two",
    ]  # fmt: skip
    assert page.depth == 0
    assert html.index("width:100%;background:#0d9488") < html.index("width:25%;background:#b91c1c")


def test_claims_that_carry_nothing():
    assert "width:0%" in view.claims({"cosine": 0.5, "parts": [claim(carries=0.0)]})
    assert Page(view.claims({"cosine": 0.5, "parts": []})).cells[1:] == [
        "carries", "", "alone", "part",
    ]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_claims_are_text(text):
    page = Page(view.claims({"cosine": 0.5, "parts": [claim(text)]}))
    assert set(page.tags) <= KNOWN
    assert page.attributes <= {"style", "scope", "dir"}
    assert page.cells[-1] == text


def test_a_table_of_any_cells():
    assert Page(table(("a", "b"), [["1", Html("<em>2</em>")]])).cells == ["a", "b", "1", "2"]
    assert "<caption" not in table(("a",), [])


def test_a_chip_is_a_token_or_nothing():
    assert Page(table((), [[chip(" <b>")], [chip(None)]])).cells == ["␣<b>", ""]
