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


def test_an_experiment_by_depth_is_of_one_layer(live):
    shown = live({**run(), "records": []})
    for each, layer in enumerate((8, 16)):
        side = {**view.side(run(says="About it.")), "layer": layer}
        shown.say(type="run", run=each, prompt=0, reading=side)
    shown.page.click("#t0-1")
    deep = shown.details.locator(".card").nth(1)
    deep.get_by_role("button", name="patch into").click()
    shown.page.click("#t0-5")
    assert shown.sent == [{"type": "patch", "source": [1, 1], "target": [1, 5], "id": 1}]
    changed = {**view.side(run(label="patched", says="About the barn.")), "layer": 16}
    shown.say(type="run", id=1, run=2, prompt=1, reading=changed)
    shown.say(type="result", kind="patch", id=1, run=2, cell=[2, 5], kl=1.25, next=[])
    assert shown.page.locator("h2").all_inner_texts() == ["text 1", "patched"]
    shown.page.get_by_role("button", name="block 8").click()
    expect(shown.details.locator(".card:not(.result)")).to_have_count(2)


READ = run(says="About the cow.\nA farm.")


def card(title: str, live: Live):
    return live.details.locator(".card.result").filter(has_text=title)


def test_two_tokens_are_compared(live):
    shown = live(READ)
    shown.page.click("#t0-1")
    shown.page.get_by_role("button", name="compare with").click()
    expect(shown.page.locator("#state")).to_contain_text("Click the token to compare it with.")
    shown.page.click("#t0-5")
    assert shown.sent == [{"type": "compare", "a": [0, 1], "b": [0, 5], "id": 1}]
    texts = ["About Rome, in Italy;", "About Paris, in France;"]
    shown.say(type="result", kind="compare", id=1, texts=texts, cosine=0.123456)
    found = card("compare", shown)
    assert found.locator("del").all_inner_texts() == ["Rome", "Italy"]
    assert found.locator("ins").all_inner_texts() == ["Paris", "France"]
    expect(found).to_contain_text("cosine of the two residuals0.123")
    found.get_by_role("button", name="close").click()
    expect(found).to_have_count(0)


def test_escape_gives_up_an_experiment(live):
    shown = live(READ)
    shown.page.click("#t0-1")
    shown.page.get_by_role("button", name="patch into").click()
    shown.page.keyboard.press("Escape")
    expect(shown.page.locator("#state")).to_be_hidden()
    shown.page.click("#t0-5")
    assert shown.sent == []


def test_a_residual_is_patched_and_the_cell_is_marked_beside_the_run_as_it_was(live):
    shown = live(READ)
    shown.page.click("#t0-1")
    shown.page.get_by_role("button", name="patch into").click()
    shown.page.click("#t0-5")
    assert shown.sent == [{"type": "patch", "source": [0, 1], "target": [0, 5], "id": 1}]
    changed = view.side(run(label="patched", says="About the barn."))
    shown.say(type="run", id=1, run=1, reading=changed)
    rows = [[" lives", 0.8, 0.1], ["<b>", 0.001, 0.6]]
    shown.say(type="result", kind="patch", id=1, run=1, cell=[1, 5], kl=1.25, next=rows)
    shown.say(type="done", id=1)
    assert shown.page.locator("h2").all_inner_texts() == ["text 1", "patched"]
    expect(shown.page.locator(".t.cell")).to_have_id("t1-5")
    expect(shown.page.locator("#t1-5")).to_have_attribute("aria-description", "patched here")
    found = card("patch", shown)
    expect(found).to_contain_text("KL of the output, in nats1.25")
    cells = found.locator("tbody tr").all_inner_texts()
    assert cells == ["␣lives\t80%\t10%", "<b>\t0.1%\t60%"]
    expect(shown.details.locator(".card del").first).to_be_visible()  # The text's change beside it.


def test_an_explanation_is_edited_and_steers(live):
    shown = live(READ)
    shown.page.click("#t0-1")
    shown.page.get_by_role("button", name="edit, steer").click()
    shown.page.fill("#edited", "About a dog.")
    shown.page.get_by_role("button", name="steer", exact=True).click()
    asked = {"type": "steer", "run": 0, "position": 1, "text": "About a dog."}
    assert shown.sent == [{**asked, "dose": 1, "id": 1}]
    going = [{"dose": 0, "text": " lives <i>here</i>"}, {"dose": 1, "text": " barks"}]
    shown.say(type="result", kind="steer", id=1, continuations=going, next=[["a", 0.5, 0.25]],
              explanation="About the dog.\nA farm.")  # fmt: skip
    found = card("steer", shown)
    for text in ("dose 0", " lives <i>here</i>", "dose 1", " barks", "50%"):
        expect(found).to_contain_text(text)
    assert found.locator("ins").all_inner_texts() == ["dog"]
    shown.say(type="done", id=1)
    found.locator("#dose").focus()
    shown.page.keyboard.press("ArrowRight")
    assert shown.sent[-1] == {**asked, "dose": 1.25, "id": 2}
    assert found.locator("#edited").input_value() == "About a dog."


def test_samples_are_drawn_and_what_they_agree_on_is_said(live):
    shown = live(READ)
    shown.page.click("#t0-1")
    shown.page.get_by_role("button", name="3 samples").click()
    assert shown.sent == [{"type": "explain", "run": 0, "positions": [1], "samples": 3, "id": 1}]
    samples = ["About a cow.", "A cow.", "Cows."]
    claims = [("About a cow.", 0.3), ("A horse.", -0.006), ("Grass.", -0.004)]
    shown.read(1, samples[0], samples=samples, agree="2 of 3: cow", claims=claims)
    expect(shown.details).to_contain_text("They agree: 2 of 3: cow")
    for figure in ("About a cow.−0.30", "A horse.+0.01", "Grass.0.00"):
        expect(shown.details).to_contain_text(figure)
    shown.details.locator("summary", has_text="3 samples").click()
    assert shown.details.locator("ol li").all_inner_texts() == samples


def test_2000_unread_tokens_within_a_second(live):
    shown = live(run([WORDS[i % len(WORDS)] for i in range(2000)]))
    shown.page.click("#t0-9")
    drawn = shown.page.evaluate(
        "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    )
    assert shown.page.locator(".t").count() == 2000
    assert drawn < 1000
    taken = shown.page.evaluate(
        """() => { const start = performance.now();
          const told = { type: "text", id: 1, run: 0, position: 9 };
          for (let k = 0; k < 50; k += 1) say({ ...told, text: "About ".repeat(k) });
          document.body.offsetHeight;
          return (performance.now() - start) / 50; }"""
    )
    assert taken < 20, "milliseconds for each step of a stream"


EVIL = "<img src=x onerror=window.pwned=1></script><script>window.pwned=1</script>\u202e"


def test_no_field_of_any_message_is_markup(live):
    shown = live(run(label=EVIL))
    for message in (
        {"type": "queued", "id": 1, "position": 1, "before": EVIL},
        {"type": "text", "id": 1, "run": 0, "position": 1, "text": EVIL},
        {"type": "error", "message": EVIL}, {"type": EVIL}, {"type": "__proto__"},
        {"type": "run", "run": 1, "reading": view.side(run([EVIL] * 2, EVIL, EVIL))},
    ):  # fmt: skip
        shown.page.click("#t0-1", force=True)
        shown.say(**message)
    names = ("samples", "agree", "next", "claims", "against", "denominator", "receipt", "code")
    values = ([EVIL, EVIL], EVIL, [(EVIL, 0.5)], [(EVIL, 0.5)], EVIL, EVIL, [(EVIL, EVIL)], EVIL)
    more = dict(zip(names, values, strict=True))
    shown.read(1, EVIL, grade=EVIL, warnings=[EVIL], grounded=EVIL, fve=1.0, whole=EVIL, **more)
    shown.page.wait_for_timeout(50)
    for opened in shown.details.locator("summary").all():
        opened.click()
    shown.page.get_by_role("button", name="compare with").click()
    shown.page.click("#t0-2")
    asked = shown.sent[-1]["id"]
    shown.say(type="result", kind="compare", id=asked, texts=[EVIL, EVIL], cosine=1)
    shown.say(type="result", kind="__proto__", id=asked)
    shown.page.get_by_role("button", name="edit, steer").click()
    shown.page.fill("#edited", f"{EVIL} and more")
    shown.page.get_by_role("button", name="steer", exact=True).click()
    told = {"id": shown.sent[-1]["id"], "next": [[EVIL, 0.5, 0.5]]}
    going = [{"dose": 0, "text": EVIL}, {"dose": 1, "text": EVIL}]
    shown.say(type="result", kind="steer", continuations=going, explanation=EVIL, kl=1, **told)
    expect(shown.details.locator(".result")).to_contain_text("<img", use_inner_text=True)
    shown.page.get_by_role("button", name="steer", exact=True).click()
    shown.say(type="error", id=shown.sent[-1]["id"], message=EVIL)
    expect(shown.details.locator(".result .none")).to_contain_text("<img", use_inner_text=True)
    shown.page.get_by_role("button", name="patch into").click()
    shown.page.click("#t0-2")
    told["id"] = shown.sent[-1]["id"]
    shown.say(type="result", kind="patch", run=0, cell=[0, 2], kl=None, **told)
    shown.page.wait_for_timeout(50)
    assert "\u202e" not in shown.page.locator("body").inner_text()
    assert shown.page.evaluate("window.pwned") is None
    assert shown.page.locator("img").count() == 0
    assert shown.page.locator("script").count() == 3
