"""The reading page: its data, and that no text can get out of it. Its behaviour: tests/browser."""

import base64
import hashlib
import html
import json
import re

import hypothesis.strategies as st
from hypothesis import given, settings

from nnsight_nla import view


def record(token="a", **changes) -> dict:
    fields = dict.fromkeys(
        ("explanation", "norm", "reconstruction_cosine", "fve", "grade", "trust", "error")
    )
    return {**fields, "position": 0, "token": token, "part": "prompt", "warnings": [], **changes}


def side(*records, **changes) -> dict:
    about = {"label": "reading", "target": "t", "verbalizer": "v", "layer": 3}
    return {**about, **changes, "records": list(records)}


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="readings">(.*?)</script>', page, re.S)
    return json.loads(found.group(1))


def token(**changes) -> dict:
    return embedded(view.reading([side(record(**changes))]))["readings"][0]["tokens"][0]


def pairs(first: str, second: str) -> list:
    sides = [side(*map(record, text.split())) for text in (first, second)]
    return embedded(view.reading(sides))["pairs"]


def test_all_fields_of_a_token():
    shown = token(
        token=" a\n", explanation="About.\nIt.", norm=1.23456, reconstruction_cosine=0.5,
        fve=0.25, grade="strong", trust="reconstruction: strong", warnings=("noisy",), error=None,
    )  # fmt: skip
    assert shown == {
        "p": 0, "t": "␣a↵", "br": True, "part": "prompt", "x": "About.\nIt.", "norm": 1.235,
        "cos": 0.5, "fve": 0.25, "grade": "strong", "trust": "reconstruction: strong",
        "warn": ["noisy"],
    }  # fmt: skip


def test_what_a_card_shows_beyond_the_record():
    shown = token(
        samples=["one", "two\x00"], agree="2 of 2: tone", next=[(" a", 0.5), ("b", float("nan"))],
        claims=[("About.", 0.25)], against="null 0.1", denominator="of 9 vectors",
        receipt=[("site", "block 1")], code="nla.read()", whole="👩\u200d👧",
    )  # fmt: skip
    assert shown == {
        "p": 0, "t": "a", "part": "prompt", "w": "👩\u200d👧", "samples": ["one", "two\\u0000"],
        "agree": "2 of 2: tone", "next": [["␣a", 0.5]], "claims": [["About.", 0.25]],
        "against": "null 0.1", "var": "of 9 vectors", "receipt": [["site", "block 1"]],
        "code": "nla.read()",
    }  # fmt: skip
    assert token(whole="")["in"] is True


def test_a_side_has_its_receipt_and_its_code_once():
    shown = view.side(side(record(), receipt=[("site", "block 1")], code="nla.read()"))
    assert shown["receipt"] == [("site", "block 1")]
    assert shown["code"] == "nla.read()"


def test_a_live_page_has_its_transport_and_what_that_connects_to():
    page = view.live("window.x = 1", connect="ws://127.0.0.1:9")
    policy = re.search('Content-Security-Policy" content="(.*?)"', page).group(1)
    for text in ("window.x = 1", view.script()):
        assert (
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            in policy
        )
    assert "connect-src ws://127.0.0.1:9;" in policy
    assert page.index("window.x = 1") < page.index("function mount(")
    assert embedded(page)["readings"] == []
    assert "connect-src 'none';" in html.unescape(view.reading([side(record())]))


def test_a_page_without_a_transport_has_no_code_for_one():
    page = view.reading([side(record())])
    assert "function connect(" not in page
    assert "function connect(" in view.script()


def test_absent_values_are_left_out():
    assert token() == {"p": 0, "t": "a", "part": "prompt"}
    assert "norm" not in token(norm=float("inf"))
    assert "cos" not in token(reconstruction_cosine=float("nan"))


def test_long_values_are_cut():
    shown = token(token="x" * 230, explanation="y" * 20_001)
    assert (len(shown["t"]), shown["more"]) == (200, 30)
    assert shown["x"].endswith("y… (1 more characters)")


def test_the_sides_say_what_was_read():
    shown = embedded(view.reading([side(record(), label="one"), side(record(), target="u\x00")]))
    assert [each["label"] for each in shown["readings"]] == ["one", "reading"]
    assert shown["readings"][1]["target"] == "u\\u0000"
    assert shown["readings"][0]["layer"] == 3


def test_two_texts_are_aligned():
    assert embedded(view.reading([side(record())]))["pairs"] is None
    assert pairs("a b c", "x y z") == [[0, 0], [1, 1], [2, 2]]
    assert pairs("a b c d", "a d") == [[0, 0], [3, 1]]
    assert pairs("a b c d e", "a x c e") == [[0, 0], [1, 1], [2, 2], [4, 3]]


def test_the_title_is_the_beginning_of_the_text():
    def title(*records, **options) -> str:
        page = view.reading([side(*records)], **options)
        return re.search("<title>(.*?)</title>", page).group(1)

    words = [record("<s>", part="template"), record("The"), record(" cow\n"), record(" moos")]
    assert title(*words, record(" Moo.", part="reply")) == "The cow moos"
    assert title(*words, title="A <b>") == "A &lt;b&gt;"
    assert title(words[0]) == "Reading"
    assert title(record("x" * 100)) == "x" * 80 + "…"
    halves = [record("\ufffd", whole="巴"), record("\ufffd", whole=""), record("黎")]
    assert title(*halves) == "巴黎"


def test_readers_without_scripts_have_a_table():
    rows = [record("a", explanation="About <b>."), record(error="is zero", norm=0.0), record()]
    page = view.reading([side(*rows)])
    table = page[page.index("<noscript>") : page.index("</noscript>")]
    for text in ("About &lt;b&gt;.", "no text: this vector is zero", "not read"):
        assert table.count(text) == 1
    assert "<noscript>" not in view.reading([side(*rows)], table=False)


def test_the_policy_allows_this_packages_script_and_style_only():
    page = view.reading([side(record())])
    policy = re.search('Content-Security-Policy" content="(.*?)"', page).group(1)
    for name in ("script", "style"):
        body = re.search(f"<{name}>(.*?)</{name}>", page, re.S).group(1)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy


def test_a_frame_holds_the_page_in_a_sandbox():
    frame = view.frame('<p class="x">&</p>', height=300)
    assert 'sandbox="allow-scripts"' in frame
    assert 'srcdoc="&lt;p class=&quot;x&quot;&gt;&amp;&lt;/p&gt;"' in frame
    assert "height:300px" in frame
    assert frame.count("<") == 2


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


@settings(max_examples=60, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_no_text_gets_out_of_the_data(token, text, note):
    page = view.reading([side(record(token, explanation=text, norm=1.0, warnings=(note,)))])
    assert page.count("<script") == page.count("</script>") == 2
    assert page.count("<noscript>") == page.count("</noscript>") == 1
    shown = embedded(page)["readings"][0]["tokens"][0]
    if all(char.isprintable() for char in text):
        assert shown["x"] == text
    assert "\x00" not in page
    assert page.encode("utf-8")
