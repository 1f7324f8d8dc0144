"""axe-core finds nothing on the page: not on a file, and not on a live page before and after."""

import pytest
from playwright.sync_api import BrowserContext, expect

from nnsight_nla import view

from .conftest import made
from .test_transport import TRANSPORT, record, run

EXPLAINED = {
    "norm": 14.1, "reconstruction_cosine": 0.92, "fve": 0.84, "grade": "strong",
    "samples": ["About Paris.", "About Paris."], "agree": "2 of 2: Paris",
    "next": [(" is", 0.6), (" has", 0.2)], "claims": [("About Paris.", 0.36)],
    "against": "cosine 0.92, against the other vectors of this text 0.19",
    "denominator": "denominator 0.97: the variance of 18,000 vectors",
    "receipt": [("verbalizer", "av"), ("injection", "add")], "code": "print(thought.text)",
}  # fmt: skip


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_nothing_on_a_file(show, axe, context):
    words = ["People", " in", " Paris", " speak"]
    page = show(made(words, lambda place, word: f"About {word.strip()}.\nNext: {place}."))
    page.locator("#t0-2").click()
    assert axe(page) == []


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_nothing_on_a_live_page_before_and_after(context: BrowserContext, axe, tmp_path):
    path = tmp_path / "live.html"
    path.write_text(view.live(TRANSPORT, readings=(run(),)), "utf-8")
    page = context.new_page()
    page.goto(path.as_uri())
    assert axe(page) == []
    page.locator("#t0-2").click()
    page.evaluate("message => say(message)", {"type": "text", "id": 1, "run": 0, "position": 2,
                                              "text": "About a"})  # fmt: skip
    expect(page.locator("#details")).to_contain_text("About a")
    assert axe(page) == []
    token = view.token(record(2, " lives", "About Paris.\nNext: is.", **EXPLAINED))
    message = {"type": "token", "id": 1, "run": 0, "position": 2, "token": token}
    page.evaluate("message => { say(message); say({type: 'done', id: 1}); }", message)
    expect(page.locator("#details")).to_contain_text("denominator")
    assert axe(page) == []
    page.get_by_role("button", name="edit, steer").click()
    assert axe(page) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert axe(page) == []
    page.get_by_role("button", name="compare with").click()
    assert axe(page) == []
    page.locator("#t0-1").click()
    texts = ["About Rome.", "About Paris."]
    page.evaluate("texts => say({type: 'result', kind: 'compare', id: 2, texts, cosine: 1})", texts)
    expect(page.locator("#details del")).to_have_text("Rome")
    assert axe(page) == []
    page.evaluate("become('lost')")
    assert axe(page) == []
