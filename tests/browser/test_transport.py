"""The page where a transport is there: click, drag, stream, queue, cancel, lose the connection.

The transport is a stand-in: the tests see what the page sends, and say what it receives.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from nnsight_nla import view

from .conftest import Watched

TRANSPORT = """
globalThis.sent = [];
globalThis.nnsightNla = { transport: {
  send(message) { sent.push(message); },
  receive(callback) { globalThis.say = callback; },
  state(callback) { globalThis.become = callback; callback("open"); },
} };
"""
WORDS = ["The", " cow", " lives", " in", " the", " barn", "."]


def record(position: int, token: str, text: str | None = None, **more: Any) -> dict[str, Any]:
    """A token's record, as a session makes it."""
    fields = ("norm", "reconstruction_cosine", "fve", "grade", "trust", "error", "grounded")
    return {
        **dict.fromkeys(fields), "position": position, "token": token, "part": "prompt",
        "read": text is not None, "explanation": text, "warnings": [], **more,
    }  # fmt: skip


def run(words: list[str] = WORDS, label: str = "text 1", says: str | None = None) -> dict[str, Any]:
    """A text of which nothing was read, or every token with the same explanation."""
    about = {"label": label, "target": "target", "verbalizer": "av", "layer": 3}
    return {**about, "records": [record(i, word, says) for i, word in enumerate(words)]}


class Live:
    """A live page, what it sent, and what it is told."""

    def __init__(self, page: Page) -> None:
        self.page = page

    @property
    def sent(self) -> list[dict[str, Any]]:
        return self.page.evaluate("sent")

    @property
    def details(self):
        return self.page.locator("#details")

    def say(self, **message: Any) -> None:
        self.page.evaluate("message => say(message)", message)

    def read(self, position: int, text: str, **more: Any) -> None:
        """Finish the explanation that was asked for last."""
        asked = self.sent[-1]["id"]
        made = view.token(record(position, WORDS[position], text, **more))
        self.say(type="token", id=asked, run=0, position=position, token=made)
        self.say(type="done", id=asked)


@pytest.fixture
def live(context: BrowserContext, tmp_path: Path) -> Iterator[Callable[..., Live]]:
    seen: list[Watched] = []

    def open_page(*readings: dict[str, Any]) -> Live:
        path = tmp_path / f"live-{len(seen)}.html"
        path.write_text(view.live(TRANSPORT, readings=readings or (run(),)), "utf-8")
        watched = Watched(context.new_page()).watch()
        seen.append(watched)
        watched.page.goto(path.as_uri())
        return Live(watched.page)

    yield open_page
    for watched in seen:
        assert watched.outside == []
        assert watched.complaints == []


def test_a_click_on_an_unread_token_asks_for_it_and_the_text_streams_in(live):
    shown = live()
    shown.page.click("#t0-5")
    assert shown.sent == [{"type": "explain", "run": 0, "positions": [5], "id": 1}]
    expect(shown.details).to_contain_text("Waiting for the verbalizer.")
    shown.say(type="queued", id=1, position=5, before=3)
    expect(shown.details).to_contain_text("Waiting: 3 before it.")
    for text in ("About a", "About a barn.\nNext"):
        shown.say(type="text", id=1, run=0, position=5, text=text)
        expect(shown.details.locator(".said")).to_have_text(text.replace("\n", ""))
    expect(shown.details).to_have_attribute("aria-busy", "true")
    shown.read(5, "About a barn.\nNext: a stop.", norm=3.0, reconstruction_cosine=0.5)
    expect(shown.details).to_contain_text("Next: a stop.")
    expect(shown.details).to_have_attribute("aria-busy", "false")
    expect(shown.page.locator("#t0-5")).to_have_class("t on pinned")
    expect(shown.page.get_by_role("radio", name="reconstruction")).to_be_checked()
    shown.page.click("#t0-5")  # It was read: this lets go, and asks for nothing.
    assert len(shown.sent) == 1


def test_dragging_over_a_range_asks_for_all_that_is_unread_in_it(live):
    shown = live()
    shown.page.click("#t0-2")
    shown.read(2, "About living.")
    shown.page.hover("#t0-1")
    shown.page.mouse.down()
    shown.page.hover("#t0-3")
    shown.page.hover("#t0-4")
    assert shown.page.locator(".t.range").count() == 4
    shown.page.mouse.up()
    assert shown.sent[-1] == {"type": "explain", "run": 0, "positions": [1, 3, 4], "id": 2}
    assert shown.page.locator(".t.range").count() == 0
    expect(shown.page.locator(".t.waiting")).to_have_count(3)


def test_the_keyboard_does_the_same(live):
    shown = live()
    shown.page.locator("#text0").focus()
    shown.page.keyboard.press("Home")
    shown.page.keyboard.press("Enter")
    assert shown.sent[-1]["positions"] == [0]
    for key in ("ArrowRight", "Shift+ArrowRight", "Shift+ArrowRight", "Enter"):
        shown.page.keyboard.press(key)
    assert shown.sent[-1]["positions"] == [1, 2, 3]


def test_escape_cancels_what_waits_and_a_late_text_changes_nothing(live):
    shown = live()
    shown.page.click("#t0-1")
    shown.page.click("#t0-2")
    shown.say(type="text", id=1, run=0, position=1, text="About a")
    shown.page.keyboard.press("Escape")
    assert [each for each in shown.sent if each["type"] == "cancel"] == [
        {"type": "cancel", "id": 1}, {"type": "cancel", "id": 2},
    ]  # fmt: skip
    shown.say(type="text", id=1, run=0, position=1, text="About a cow")
    shown.say(type="cancelled", id=1)
    shown.say(type="error", id=2, message="too late")
    expect(shown.page.locator(".t.waiting")).to_have_count(0)
    expect(shown.details).to_contain_text("Not read yet")
    expect(shown.details).not_to_contain_text("too late")
    shown.page.click("#t0-1")  # It can be asked for again.
    assert shown.sent[-1] == {"type": "explain", "run": 0, "positions": [1], "id": 3}


def test_an_error_is_shown_at_its_token_and_a_click_tries_again(live):
    shown = live()
    shown.page.click("#t0-1")
    shown.say(type="error", id=1, message="The disk is <b>full</b>.")
    expect(shown.details.locator(".said")).to_have_text("The disk is <b>full</b>.")
    shown.page.click("#t0-1")
    assert shown.sent[-1]["id"] == 2


def test_a_lost_connection_is_said_and_what_waits_is_asked_for_again(live):
    shown = live()
    shown.page.click("#t0-1")
    shown.page.evaluate("become('lost')")
    expect(shown.page.get_by_role("status").first).to_contain_text("The connection is lost.")
    shown.page.evaluate("become('open')")
    expect(shown.page.locator("#state")).to_be_hidden()
    assert [each["id"] for each in shown.sent] == [1, 1]
    shown.read(1, "About a cow.")
    expect(shown.details).to_contain_text("About a cow.")
    shown.page.click("#t0-2")
    shown.page.evaluate("become('closed')")
    expect(shown.details).to_contain_text("The session ended before this was read.")
    expect(shown.page.locator("#state")).to_contain_text("The session has ended.")
    shown.page.click("#t0-3")
    assert len(shown.sent) == 3, "nothing more is asked for"


def test_another_text_is_opened_and_the_first_one_is_still_there(live):
    shown = live()
    shown.page.fill("#prompt", "A dog.")
    shown.page.keyboard.press("Enter")
    assert shown.sent == [{"type": "open", "text": "A dog.", "id": 1}]
    other = view.side(run(["A", " dog", "."], "text 2"))
    shown.say(type="run", id=1, run=1, reading=other)
    shown.say(type="done", id=1)
    assert shown.page.locator(".t").all_inner_texts() == ["A", "␣dog", "."]
    shown.page.click("#t1-1")
    assert shown.sent[-1] == {"type": "explain", "run": 1, "positions": [1], "id": 2}
    shown.page.get_by_role("button", name="text 1", exact=True).click()
    assert shown.page.locator(".t").count() == len(WORDS)
    shown.page.get_by_role("button", name="Show text 2 beside text 1").click()
    assert shown.page.locator("h2").all_inner_texts() == ["text 1", "text 2"]


def test_a_page_waits_for_its_first_text_and_keeps_its_place_when_it_comes_again(live, context):
    shown = live(run())
    shown.page.goto(shown.page.url + "#0.2")
    shown.page.reload()
    expect(shown.details).to_contain_text("position 2")
    shown.say(type="run", run=0, reading=view.side(run(says="About it.")))
    expect(shown.details).to_contain_text("position 2")
    expect(shown.details).to_contain_text("About it.")
    expect(shown.page.locator("[aria-selected=true]")).to_have_id("t0-2")


def test_in_an_element_it_keeps_to_itself(context, tmp_path):
    """As a notebook's widget: in a shadow root, two of them in one document."""
    path = tmp_path / "widget.html"
    path.write_text(
        "<!doctype html><body style='margin:9px'><input id=query><p id=a><p id=b>", "utf-8"
    )
    watched = Watched(context.new_page()).watch()
    page = watched.page
    page.goto(path.as_uri())
    page.evaluate(view.script())
    data = {"title": "t", "readings": [view.side(run(says="About it."))], "pairs": None}
    page.evaluate(
        """([data, style]) => { for (const id of ["a", "b"]) {
          const shadow = document.getElementById(id).attachShadow({ mode: "open" });
          const sheet = document.createElement("style"), box = document.createElement("div");
          sheet.textContent = style;
          shadow.append(sheet, box);
          window[id] = nnsightNla.mount(box, data, null);
        } }""",
        [data, view.style()],
    )
    page.locator("#a .t").nth(1).click()
    expect(page.locator("#a #details")).to_contain_text("pinned")
    expect(page.locator("#b #details")).not_to_contain_text("pinned")
    assert page.url.endswith("widget.html"), "the document's address is its own"
    assert page.evaluate("getComputedStyle(document.body).margin") == "9px"
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "a"
    page.keyboard.type("about")
    expect(page.locator("#a #count")).to_have_text("7 of 7")
    page.evaluate("a.destroy()")
    expect(page.locator(".t")).to_have_count(7)
    assert watched.complaints == []


def test_several_layers_of_one_text_are_columns(live):
    shown = live({**run(), "records": []})
    for each, layer in enumerate((8, 16)):
        side = {**view.side(run()), "layer": layer}
        shown.say(type="run", run=each, prompt=0, reading=side)
    expect(shown.page.locator("#t0-1")).to_be_visible()
    shown.page.click("#t0-1")
    expect(shown.details.locator(".card")).to_have_count(2)
    assert [(each["run"], each["positions"]) for each in shown.sent] == [(0, [1]), (1, [1])]
    made = view.token(record(1, WORDS[1], "About a farm."))
    shown.say(type="token", id=1, run=0, position=1, token=made)
    said = shown.details.locator(".said")
    expect(said.first).to_have_text("About a farm.")
    assert said.all_inner_texts() == ["About a farm.", "Waiting for the verbalizer."]
