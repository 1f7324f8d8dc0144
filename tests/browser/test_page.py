"""The reading page in a real browser: hover, pin, keys, search, two sides, size and speed."""

import itertools
from dataclasses import replace
from statistics import median

import pytest
from playwright.sync_api import Page, expect

from nnsight_nla.reading.records import Reading

from .conftest import LOREM, long, made

WORDS = ["Paris", " is", " the", "\n\n", "capital", " of", " France", "."]


def said(place: int, word: str) -> str:
    return f"About number {place}.\nAfter: {word.strip()}."


@pytest.fixture
def reading() -> Reading:
    return made(WORDS, said)


def details(page: Page):
    return page.locator("#details")


def box(page: Page, side: int = 0):
    return page.get_by_role("listbox").nth(side)


def test_every_token_is_there_with_its_white_space_to_see(show, reading):
    page = show(reading)
    chips = page.get_by_role("option")
    assert chips.all_inner_texts() == [
        "Paris", "␣is", "␣the", "↵↵", "capital", "␣of", "␣France", ".",
    ]  # fmt: skip
    tops = [page.locator(f"#t0-{i}").bounding_box()["y"] for i in (3, 4)]
    assert tops[1] > tops[0] + 10  # a newline token ends its line


def test_hovering_shows_and_leaving_goes_back_to_the_last_token(show, reading):
    page = show(reading)
    expect(details(page)).to_contain_text("About number 7.")
    page.hover("#t0-2")
    expect(details(page)).to_contain_text("About number 2.")
    expect(details(page)).to_contain_text("position 2")
    expect(details(page)).to_contain_text("norm12")
    expect(details(page)).to_contain_text("cosine0.7")
    expect(details(page)).not_to_contain_text("About number 7.")
    page.hover("h1")
    expect(details(page)).to_contain_text("About number 7.")


def test_a_click_pins_and_a_second_one_lets_go(show, reading):
    page = show(reading)
    page.click("#t0-2")
    page.hover("#t0-5")
    expect(details(page)).to_contain_text("About number 2.")
    expect(details(page)).to_contain_text("pinned")
    expect(page.locator("#t0-2")).to_have_attribute("aria-selected", "true")
    assert page.url.endswith("#0.2")
    page.click("#t0-2")
    expect(details(page)).not_to_contain_text("pinned")
    expect(page.locator("[aria-selected=true]")).to_have_count(0)


def test_the_address_names_the_pinned_token(show, reading):
    page = show(reading)
    page.goto(page.url.split("#")[0] + "#0.4")
    page.reload()
    expect(details(page)).to_contain_text("About number 4.")
    expect(details(page)).to_contain_text("pinned")


def test_keys_move_pin_search_and_clear(show, reading):
    page = show(reading)
    page.keyboard.press("/")
    expect(page.get_by_label("Search the explanations")).to_be_focused()
    page.keyboard.type("number 3")
    expect(details(page).locator(".found button")).to_have_count(1)
    page.keyboard.press("Enter")
    expect(details(page).locator(".token")).to_have_text("↵↵")
    page.keyboard.press("Escape")
    expect(page.locator("#query")).to_have_value("")
    expect(box(page)).to_be_focused()
    page.keyboard.press("Escape")
    expect(details(page)).not_to_contain_text("pinned")

    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-3")
    page.keyboard.press("ArrowRight")
    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-4")
    expect(details(page)).to_contain_text("About number 4.")
    page.keyboard.press("ArrowUp")
    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-0")
    page.keyboard.press("ArrowDown")
    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-4")
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")  # nothing is there: it stays
    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-7")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    expect(details(page)).to_contain_text("pinned")
    page.keyboard.press("ArrowRight")  # the pin goes with it
    expect(details(page)).to_contain_text("About number 1.")
    expect(page.locator("[aria-selected=true]")).to_have_id("t0-1")
    page.keyboard.press("Escape")
    expect(page.locator("[aria-selected=true]")).to_have_count(0)


def test_what_a_screen_reader_is_told(show, reading):
    page = show(reading)
    expect(page.get_by_role("listbox", name="Tokens of reading")).to_have_count(1)
    expect(page.get_by_role("option", name="1: is", exact=True)).to_have_count(1)
    expect(page.get_by_role("option", name="3: newline newline", exact=True)).to_have_count(1)
    live = page.get_by_role("region", name="Explanation")
    expect(live).to_have_attribute("aria-live", "polite")
    expect(page.get_by_role("radio")).to_have_count(3)
    page.keyboard.press("Tab")  # one stop for the whole text, not one per token
    stops = set()
    for _ in range(6):
        stops.add(page.evaluate("document.activeElement.id || document.activeElement.type"))
        page.keyboard.press("Tab")
    assert {"radio", "query", "text0"} <= stops


def test_search_marks_its_hits_in_the_text_and_in_the_explanation(show):
    page = show(made(WORDS, lambda place, word: "A city, a CITY." if place < 3 else "A river."))
    page.fill("#query", "city")
    expect(page.locator(".t.hit")).to_have_count(3)
    expect(page.locator("#count")).to_have_text("3 of 8")
    page.locator(".found button").nth(1).click()
    expect(details(page)).to_contain_text("position 1")
    assert details(page).locator(".said mark").all_inner_texts() == ["city", "CITY"]
    page.fill("#query", "nowhere")
    expect(page.locator(".t.hit")).to_have_count(0)
    expect(details(page)).to_contain_text("No matches.")


def test_enter_goes_from_hit_to_hit_and_round(show, reading):
    page = show(reading)
    page.fill("#query", "about number")
    seen = []
    for _ in range(3):
        page.keyboard.press("Enter")
        seen.append(page.locator("[aria-selected=true]").get_attribute("id"))
    page.keyboard.press("Shift+Enter")
    seen.append(page.locator("[aria-selected=true]").get_attribute("id"))
    assert seen == ["t0-0", "t0-1", "t0-2", "t0-1"]


def test_the_shade_is_switched_without_making_anything_anew(show):
    records = list(made(WORDS, said))
    records[0] = replace(records[0], norm=1000.0, reconstruction_cosine=0.0)
    page = show(Reading(tuple(records), "target", "av", 3))

    def shade(name):
        page.get_by_role("radio", name=name).check(force=True)
        alpha = "e => parseFloat(getComputedStyle(e).getPropertyValue('--v'))"
        return [page.locator(f"#t0-{i}").evaluate(alpha) for i in (0, 1)]

    by_norm, by_score = shade("norm"), shade("reconstruction")
    assert by_norm[0] == 1.0
    assert by_norm[1] < 0.2
    assert by_score == [0.0, 0.6]
    background = "e => getComputedStyle(e).backgroundColor"
    strong = page.locator("#t0-1").evaluate(background)
    assert strong != page.locator("#t0-0").evaluate(background)
    shade("none")
    assert page.locator("#t0-1").evaluate(background) == page.locator("#t0-0").evaluate(background)


def test_no_chip_is_made_again_on_hover(show):
    page = show(long(300))
    page.evaluate(
        "() => { window.made = 0; new MutationObserver(l => { window.made += l.filter("
        "m => m.type !== 'attributes').length }).observe(document.getElementById('texts'),"
        "{subtree: true, childList: true, characterData: true}) }"
    )
    for place in range(0, 60, 3):
        page.hover(f"#t0-{place}")
    page.click("#t0-9")
    page.fill("#query", "harbour")
    expect(details(page)).to_contain_text("position 9")
    assert page.evaluate("window.made") == 0


def test_two_sides_with_their_difference_marked(show):
    clean = made(WORDS, lambda place, word: "About Paris.\nIn France." if place > 3 else "Nothing.")
    records = [
        replace(record, explanation="About Rome.\nIn France.", norm=20.0) if i > 5 else record
        for i, record in enumerate(clean)
    ]
    patched = Reading(tuple(records), "target", "av", 3)
    page = show(clean, beside=patched, labels=("clean", "patched"))
    assert page.locator("h2").all_inner_texts() == ["clean", "patched"]
    expect(page.locator(".t.changed")).to_have_count(4)
    page.hover("#t1-6")
    expect(details(page).locator(".card")).to_have_count(2)
    assert details(page).locator("del").all_inner_texts() == ["Paris"]
    assert details(page).locator("ins").all_inner_texts() == ["Rome"]
    expect(details(page)).to_contain_text("norm20 +4")
    expect(page.locator("#t0-6")).to_have_class("t changed partner")
    page.hover("#t0-5")  # the same on both sides: nothing is marked
    assert details(page).locator("del, ins").count() == 0
    box(page, 0).focus()
    page.keyboard.press("Tab")
    expect(box(page, 1)).to_be_focused()
    page.keyboard.press("ArrowLeft")
    expect(box(page, 1)).to_have_attribute("aria-activedescendant", "t1-6")


def test_sides_of_unequal_length_are_laid_opposite_by_their_tokens(show):
    one = made(["a", "b", "c", "d"], said)
    other = made(["a", "x", "y", "b", "c", "d"], said)
    page = show(one, beside=other)
    page.hover("#t0-3")
    expect(page.locator(".t.partner")).to_have_id("t1-5")
    page.hover("#t1-2")
    expect(page.locator(".t.partner")).to_have_count(0)
    expect(details(page).locator(".card")).to_have_count(1)


def test_what_was_not_read_and_what_failed(show):
    records = list(made(WORDS, said))
    records[1] = replace(records[1], explanation=None, norm=None, reconstruction_cosine=None)
    records[2] = replace(records[2], explanation=None, error="is zero, it has no direction")
    records[4] = replace(records[4], warnings=("position 4: noisy",), grade="weak", trust="why")
    page = show(Reading(tuple(records), "target", "av", 3))
    page.hover("#t0-1")
    expect(details(page)).to_contain_text("About number 7.")
    page.click("#t0-1", force=True)
    expect(details(page)).not_to_contain_text("pinned")
    page.hover("#t0-2")
    expect(details(page)).to_contain_text("No text, because this vector is zero")
    page.hover("#t0-4")
    expect(details(page)).to_contain_text("position 4: noisy")
    expect(details(page)).to_contain_text("reconstructionweak")
    page.click("#t0-0")
    page.locator("#text0").focus()
    page.keyboard.press("ArrowRight")  # over the one that was not read
    expect(box(page)).to_have_attribute("aria-activedescendant", "t0-2")


def test_the_templates_tokens_stand_apart_and_turns_have_their_names(show):
    parts = ["template", "template", "user", "user", "template", "assistant", "reply", "reply"]
    records = [replace(r, part=p) for r, p in zip(made(WORDS, said), parts, strict=True)]
    page = show(Reading(tuple(records), "target", "av", 3))
    groups = page.get_by_role("group").evaluate_all("l => l.map(e => e.getAttribute('aria-label'))")
    assert [name for name in groups if name] == [
        "template", "user", "template", "assistant", "reply",
    ]  # fmt: skip
    assert page.locator(".who").all_inner_texts() == ["user", "assistant", "reply"]
    size = "e => parseFloat(getComputedStyle(e).fontSize)"
    assert page.locator("#t0-0").evaluate(size) < page.locator("#t0-2").evaluate(size)


def test_the_table_behind_the_picture(show, reading):
    page = show(reading)  # A short text's table is open from the first.
    rows = page.locator("#table tbody tr")
    expect(rows).to_have_count(8)
    expect(rows.nth(6)).to_contain_text("About number 6.")
    page = show(long(100))
    assert page.locator("table").count() == 0
    page.click("#table > summary")
    expect(page.locator("#table tbody tr")).to_have_count(100)
    page.set_viewport_size({"width": 420, "height": 760})
    number = page.locator("#table td.number").nth(3)
    assert number.evaluate("e => getComputedStyle(e).whiteSpace") == "nowrap"


def test_without_scripts_there_is_a_table(browser, reading, tmp_path):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(reading.to_html(tmp_path / "plain.html").as_uri())
    rows = page.locator("tbody tr")
    expect(rows).to_have_count(8)
    expect(rows.nth(6)).to_be_visible()
    expect(rows.nth(6)).to_contain_text("About number 6.")
    context.close()


def test_in_a_notebooks_output_it_is_a_frame_without_rights(context, reading, tmp_path):
    page = context.new_page()
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><body>{reading._repr_html_()}", "utf-8")
    page.goto(notebook.as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("#t0-2").hover()
    expect(frame.locator("#details")).to_contain_text("About number 2.")
    frame.locator("#t0-2").click()
    expect(frame.locator("#details")).to_contain_text("pinned")
    assert page.locator("iframe").get_attribute("sandbox") == "allow-scripts"
    assert page.frames[1].evaluate("window.origin") == "null"


def test_a_page_of_500_tokens_is_small(tmp_path):
    size = long(500).to_html(tmp_path / "long.html").stat().st_size
    data = sum(len(LOREM) + 20 for _ in range(500))
    print(f"500 tokens: {size / 1000:.0f} kB, of which explanations {2 * data / 1000:.0f} kB")
    assert size < 300_000 + 2 * data  # the words are there twice: for scripts, and without
    empty = made(["a"], said).to_html(tmp_path / "one.html").stat().st_size
    assert empty < 60_000


def test_2000_tokens_within_a_second(context, tmp_path):
    path = long(2000).to_html(tmp_path / "long.html")
    opened, hovered = [], []
    for _ in range(5):
        page = context.new_page()
        page.goto(path.as_uri())
        opened.append(
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => setTimeout("
                "() => done(performance.now()))))"
            )
        )
        assert page.locator(".t").count() == 2000
        hovered.append(
            page.evaluate(
                """() => {
                  const chips = [...document.querySelectorAll(".t")].slice(0, 200);
                  const start = performance.now();
                  for (const chip of chips) {
                    chip.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
                    document.body.offsetHeight;
                  }
                  return (performance.now() - start) / chips.length;
                }"""
            )
        )
        page.close()
    print(
        f"2,000 tokens: drawn after {median(opened):.0f} ms, a hover takes {median(hovered):.1f} ms"
    )
    assert min(opened) < 1000
    assert min(hovered) < 50


def test_what_is_out_of_sight_is_laid_out_later(show, context):
    laid_out = "e => e.checkVisibility({contentVisibilityAuto: true})"
    context.add_init_script("requestIdleCallback = go => { window.rest = go; }")
    page = show(long(600))
    last = page.locator("#t0-599")
    assert page.locator("#t0-0").evaluate(laid_out)
    assert not last.evaluate(laid_out)
    box(page).focus()
    page.keyboard.press("End")
    page.keyboard.press("Home")
    page.keyboard.press("End")  # reaching there does not wait
    expect(last).to_be_in_viewport()
    assert last.evaluate(laid_out)
    page.keyboard.press("ArrowUp")
    up = int(box(page).get_attribute("aria-activedescendant").removeprefix("t0-"))
    assert 580 < up < 599
    page.keyboard.press("Home")
    expect(page.locator("#t0-0")).to_be_in_viewport()
    seen = [0]
    for _ in range(20):  # over the borders of runs, a line at a time
        page.keyboard.press("ArrowDown")
        seen.append(int(box(page).get_attribute("aria-activedescendant").removeprefix("t0-")))
    assert all(0 < b - a <= 12 for a, b in itertools.pairwise(seen))
    assert seen[-1] > 80, "more than one run"
    page.fill("#query", "harbour 480")
    page.keyboard.press("Enter")
    expect(page.locator("#t0-480")).to_be_in_viewport()
    page.goto(page.url.split("#")[0] + "#0.300")
    page.reload()
    expect(page.locator("#t0-300")).to_be_in_viewport()


def test_a_screen_reader_is_told_of_every_token_in_the_end(show):
    page = show(long(600))
    page.wait_for_function(
        "() => document.getElementById('t0-599').checkVisibility({contentVisibilityAuto: true})"
    )
    page.wait_for_timeout(100)
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in tree if node["role"].get("value") == "option"]
    assert names[-1] == "599: . newline"
    assert len(names) == 600


def test_runs_end_where_lines_do(show):
    """Dissolving them moves no token, whatever the text's own lines are."""
    words = ["word", " and", "\n", " more", "\n\n", " of", ".\n"]
    page = show(made([words[i * i % 7] for i in range(500)], said))
    assert page.locator(".run").count() > 3
    where = """style => {
      for (const run of document.querySelectorAll(".run")) {
        run.style.contentVisibility = "visible";
        run.style.display = style;
      }
      return [...document.querySelectorAll(".t")].map(t => {
        const box = t.getBoundingClientRect();
        return [Math.round(box.x), Math.round(box.y + scrollY)];
      });
    }"""
    assert page.evaluate(where, "block") == page.evaluate(where, "contents")


def test_two_sides_of_2000_tokens(context, tmp_path):
    one, other = long(2000), long(2000)
    path = one.to_html(tmp_path / "both.html", beside=other)
    page = context.new_page()
    page.goto(path.as_uri())
    drawn = page.evaluate("performance.now()")
    print(f"2 x 2,000 tokens: {drawn:.0f} ms")
    assert page.locator(".t").count() == 4000
    assert drawn < 3000


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_pictures_to_look_at(show, screenshots, pair, request):
    scheme = request.node.callspec.params["context"]
    model, nla = pair
    text = "What a lovely day! People in Paris speak French. The cow lives in the barn.\n\nParis is"
    clean = nla.read(model, text)
    patched = nla.read(model, text.replace("Paris", "Rome"))
    chat = [{"role": "user", "content": "What a lovely day! People in Paris speak"}]
    pages = {
        "reading": show(clean),
        "search": show(clean),
        "compare": show(clean, beside=patched),
        "chat": show(nla.read(model, chat, generate=8)),
        "long": show(long(500)),
    }
    pages["reading"].click("#t0-8")
    pages["search"].fill("#query", "france")
    pages["compare"].hover("#t0-8")
    for name, page in pages.items():
        page.screenshot(path=screenshots / f"{name}-{scheme}.png")
    narrow = pages["reading"]
    narrow.set_viewport_size({"width": 420, "height": 760})
    narrow.screenshot(path=screenshots / f"narrow-{scheme}.png")
    paper = narrow.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert paper == {"light": "rgb(251, 250, 248)", "dark": "rgb(18, 19, 22)"}[scheme]
    overflow = narrow.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert overflow <= 0
    text = narrow.locator("#texts").bounding_box()
    assert text["width"] > 0.85 * 420, "one column"
