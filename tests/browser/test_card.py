"""The card of a token, characters of several tokens, depth, and pages of every size."""

from dataclasses import replace

import pytest
from playwright.sync_api import expect

from nnsight_nla.reading.records import Reading

from .conftest import long, made

WORDS = ["Paris", " is", " the", "capital", " of", " France", "."]
KNOWN = {
    "fve": 0.62, "grade": "strong", "trust": "reconstruction: strong (…)",
    "against": "cosine 0.95, against the text for no vector 0.05",
    "denominator": "denominator 0.98: the variance of 9 vectors", "warnings": ("noisy", "noisy"),
    "next_tokens": (" a", "\n", "b"), "next_probabilities": (0.91, 0.04, 0.0004),
}  # fmt: skip


NAMES = ["copy text", "copy link", "copy code"]


def said(place: int, word: str) -> str:
    return f"About the {word.strip()}, number {place}.\nIt is a long text about many things."


@pytest.fixture
def reading() -> Reading:
    about = {"receipt": (("injection", "add, block 1"),), "code": "reading = nla.read(model, 'P')"}
    return replace(made(WORDS, said, **KNOWN), **about)


def test_a_card_says_what_its_figures_are_measured_against(show, reading):
    page = show(reading)
    page.click("#t0-3")
    card = page.locator("#details .card")
    for text in (KNOWN["against"], KNOWN["denominator"], "FVE0.62", "reconstructionstrong"):
        expect(card).to_contain_text(text)
    assert card.locator("[title]").count() == 0, "nothing is said by hovering only"
    assert card.locator(".notes li").all_inner_texts() == ["noisy"]
    rows = card.locator(".bars li").all_inner_texts()
    assert [row.replace("\n", " ") for row in rows] == ["␣a 91%", "↵ 4%", "b 0.04%"]
    expect(card).not_to_contain_text("block 1")
    card.locator("summary").click()
    expect(card).to_contain_text("add, block 1")


def test_text_link_and_code_are_copied(show, reading, context):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = show(reading)
    page.click("#t0-3")

    def copied(name: str) -> str:
        button = page.locator(".actions button").nth(NAMES.index(name))
        expect(button).to_have_text(name)
        button.click()
        expect(button).to_have_text("copied")
        return page.evaluate("navigator.clipboard.readText()")

    assert copied("copy text") == reading[3].explanation
    link = copied("copy link")
    assert link.endswith(".html#0.3")
    assert copied("copy code") == (
        "reading = nla.read(model, 'P')\nprint(reading[3].explanation)\n"
    )
    page.goto("about:blank")
    page.goto(link)
    expect(page.locator("#details")).to_contain_text("About the capital")
    expect(page.locator("#details")).to_contain_text("pinned")


def test_the_reconstruction_shades_a_text_and_one_cue_marks_a_change(show, reading):
    page = show(reading)
    expect(page.get_by_role("radio", name="reconstruction")).to_be_checked()
    other = replace(reading, records=tuple(replace(r, explanation="It.") for r in reading))
    page = show(reading, beside=other)
    chip = page.locator("#t1-2")
    shadow = "e => getComputedStyle(e).boxShadow"
    assert chip.evaluate(shadow) == "none", "its shade says it"
    page.get_by_role("radio", name="norm").check(force=True)
    assert chip.evaluate(shadow) != "none", "where the shade says something else, a line says it"
    change, side = (
        page.evaluate(f"getComputedStyle(document.body).getPropertyValue('--{name}')")
        for name in ("change", "other")
    )
    assert change != side


def test_a_hit_is_shown_from_word_to_word_with_its_position(show):
    text = "Considerations of unimaginable length precede the harbour, and much else follows."
    page = show(made(["a", "b"], lambda place, word: f"{text} {text}"))
    page.fill("#query", "harbour")
    found = page.locator(".found button").nth(1)
    expect(found).to_contain_text("position 1")
    snippet = found.inner_text().split("\n")[-1]
    assert snippet.startswith("… ")
    assert snippet.endswith(" …")
    assert set(snippet.strip("… ").split()) <= set(text.split())
    assert found.locator("mark").inner_text() == "harbour"


SIGNS = [
    ("Hi", None), (" \ufffd", " 👩\u200d👧"), ("\ufffd", ""), ("\ufffd", ""), ("京", None),
    ("\ufffd", "都"), ("\ufffd", ""),
]  # fmt: skip


def signs() -> Reading:
    found = made([token for token, _ in SIGNS], lambda place, word: f"About token {place}.")
    wholes = [whole for _, whole in SIGNS]
    records = [replace(record, whole=w) for record, w in zip(found, wholes, strict=True)]
    return replace(found, records=tuple(records))


def test_the_tokens_of_a_character_are_one_chip(show):
    page = show(signs())
    assert page.locator("h1").inner_text() == "Hi 👩\u200d👧京都"
    assert page.get_by_role("option").all_inner_texts() == ["Hi", "␣👩\u200d👧", "京", "都"]
    assert "\ufffd" not in page.locator("body").inner_text()
    page.click("#t0-1")
    card = page.locator("#details .card")
    expect(card).to_contain_text("About token 3.")  # The last one has seen all of it.
    expect(card).to_contain_text("token 3 of 3")
    card.get_by_role("button", name="token 1 of this character").click()
    expect(card).to_contain_text("About token 1.")
    page.locator("#text0").focus()
    page.keyboard.press("ArrowRight")
    expect(card).to_contain_text("About token 2.")
    page.fill("#query", "token 6")
    assert page.locator(".hit").all_inner_texts() == ["都"]


def test_layers_are_columns(show, context, tmp_path, reading):
    deep = replace(
        reading, layer=16, records=tuple(replace(r, explanation="Deep.") for r in reading)
    )
    path = Reading.by_depth([deep, reading]).to_html(tmp_path / "depth.html")
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator(".t").count() == len(WORDS)
    page.hover("#t0-3")
    cards = page.locator("#details .card")
    assert [card.split("\n")[1] for card in cards.all_inner_texts()] == [
        "position 3 · block 3", "position 3 · block 16",
    ]  # fmt: skip
    boxes = [card.bounding_box() for card in cards.all()]
    assert boxes[0]["y"] == boxes[1]["y"]
    assert boxes[0]["x"] < boxes[1]["x"]
    heads = page.locator("#table th").all_inner_texts()
    assert heads == ["position", "token", "block 3", "block 16"]
    page.get_by_role("button", name="block 16").click()
    expect(page.locator("#details")).to_contain_text("Deep.")
    page.fill("#query", "deep")
    expect(page.locator("#count")).to_have_text("7 of 7")


@pytest.fixture
def phone(browser):
    size = {"width": 390, "height": 760}
    opened = browser.new_context(viewport=size, has_touch=True, is_mobile=True)
    yield opened.new_page()
    opened.close()


def test_on_a_phone_the_text_is_seen_beside_two_cards_and_no_keys_are_named(
    phone, reading, tmp_path
):
    many = replace(reading, records=long(300).records)
    phone.goto(many.to_html(tmp_path / "two.html", beside=many).as_uri())
    phone.tap("#t0-9")
    expect(phone.locator("#details .card")).to_have_count(2)
    details = phone.locator("#details").bounding_box()
    assert details["height"] <= 0.5 * 760
    expect(phone.locator("#keys")).to_be_hidden()
    expect(phone.locator(".search kbd")).to_be_hidden()
    assert phone.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_a_short_page_is_filled(show, reading):
    page = show(reading)
    bottom = page.locator("#table").bounding_box()
    assert bottom["y"] + bottom["height"] > 0.6 * 760, "the table of a short text is open"
    text, details = (page.locator(each).bounding_box() for each in ("#texts", "#details"))
    assert bottom["y"] - (text["y"] + text["height"]) < 40, "the table starts below the text"
    assert bottom["x"] + bottom["width"] <= details["x"], "the table is beside the card"
    page = show(long(100))
    expect(page.locator("#table div")).to_be_hidden()
