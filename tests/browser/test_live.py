"""The served page in Chromium: click, stream, cancel, reconnect, two tabs, a server that dies."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from .conftest import Watched
from .served import PROMPT, Served

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)> Paris \u202e \x00"


@pytest.fixture(scope="module")
def nla(pair):
    return pair[1]


@pytest.fixture
def slow(nla, monkeypatch) -> None:
    """Every step of the verbalizer takes a while, as those of a large one do."""
    nla.av.dispatch()
    real = nla.av._module.forward

    def forward(*args, **kwargs):
        time.sleep(0.02)
        return real(*args, **kwargs)

    monkeypatch.setattr(nla.av._module, "forward", forward)


@pytest.fixture
def tab(context: BrowserContext, served: Served) -> Iterator[Callable[..., Page]]:
    """Open a tab on a text of its own; fail afterwards if it complained or asked for more."""
    seen: list[Watched] = []

    def open_tab(prompt: str | None = PROMPT, complains: str = "") -> Page:
        served.session.runs.clear()
        if prompt is not None:
            served.session.open(prompt)
        watched = Watched(context.new_page()).watch()
        seen.append(watched)
        watched.allowed = complains
        watched.page.goto(served.address)
        return watched.page

    yield open_tab
    for watched in seen:
        assert [url for url in watched.outside if url != served.address] == []
        complaints = [each for each in watched.complaints if not watched.allowed]
        assert complaints == []


def run_of(served: Served) -> int:
    return max(served.session.runs)


def chip(page: Page, position: int):
    return page.locator(".tokens").first.locator(".t").nth(position)


def test_a_click_streams_into_a_card(tab, served, slow, screenshots):
    page = tab()
    expect(chip(page, 3)).to_be_visible()
    chip(page, 3).click()
    said = page.locator("#details .said")
    expect(said).to_contain_text("About")
    early = said.inner_text()
    expect(page.locator("#details")).to_have_attribute("aria-busy", "false", timeout=20_000)
    whole = said.inner_text()
    assert len(early) < len(whole)
    assert whole.startswith(early.split("\n")[0][:5])
    assert "Next: French" in whole
    expect(page.locator("#details")).to_contain_text("random directions", timeout=20_000)
    page.screenshot(path=screenshots / "live-card.png")
    text = page.locator("#details").inner_text()
    for part in ("French", "FVE", "denominator", "strong", "random directions"):
        assert part in text


def test_a_range_is_explained_and_its_texts_are_those_of_a_reading(tab, served, pair):
    model, nla = pair
    page = tab()
    chip(page, 1).hover()
    page.mouse.down()
    chip(page, 2).hover()
    chip(page, 4).hover()
    page.mouse.up()
    expected = nla.read(model, PROMPT, positions=[1, 2, 3, 4])
    for position in (1, 2, 3, 4):
        expect(chip(page, position)).not_to_have_class(re.compile("waiting|unread"), timeout=20_000)
        chip(page, position).click()
        said = page.locator("#details .said")
        expect(said).to_contain_text(expected[position].explanation.splitlines()[0])


def test_escape_cancels_and_the_next_click_works(tab, served, slow):
    page = tab()
    chip(page, 3).click()
    expect(page.locator("#details .said")).to_contain_text("About")
    page.keyboard.press("Escape")
    expect(page.locator(".t.waiting")).to_have_count(0)
    deadline = time.monotonic() + 10
    while served.session._open and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not served.session.runs[run_of(served)].records[3]["read"]
    chip(page, 5).click()
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)


def test_a_new_text_is_opened_in_the_page(tab):
    page = tab()
    page.get_by_label("A text to read").fill("The cow lives in the")
    page.get_by_role("button", name="open").click()
    expect(chip(page, 2)).to_contain_text("lives")
    chip(page, 2).click()
    expect(page.locator("#details")).to_contain_text("About", timeout=20_000)


def test_two_tabs_share_the_session(tab, served, context, slow):
    page = tab()
    other = context.new_page()
    other.goto(served.address)
    expect(chip(other, 3)).to_be_visible()
    chip(page, 3).click()
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)
    expect(chip(other, 3)).not_to_have_class(re.compile("unread"))
    chip(other, 3).click()
    expect(other.locator("#details .said")).to_contain_text("Next: French")


def test_without_the_token_another_tab_gets_nothing(tab, served, context):
    tab()
    other = context.new_page()
    answer = other.goto(f"http://127.0.0.1:{served.port}/")
    assert answer.status == 404
    assert "Paris" not in other.content()
    opened = other.evaluate(
        """port => new Promise(done => {
            const socket = new WebSocket(`ws://127.0.0.1:${port}/socket`);
            socket.onopen = () => done("open"); socket.onerror = () => done("refused");
        })""",
        served.port,
    )
    assert opened == "refused"


def test_a_page_of_another_origin_gets_nothing_even_with_the_token(served, context, tmp_path):
    served.session.runs.clear()
    served.session.open(PROMPT)
    (tmp_path / "evil.html").write_text("<title>evil</title>")
    page = context.new_page()
    page.goto((tmp_path / "evil.html").as_uri())
    tried = page.evaluate(
        """async address => {
            const socket = new WebSocket(address.replace("http", "ws") + "socket");
            const first = await new Promise(done => {
                socket.onmessage = () => done("told"); socket.onerror = () => done("refused"); });
            let second;
            try { second = await (await fetch(address)).text(); } catch { second = "refused"; }
            return [first, second];
        }""",
        served.address,
    )
    assert tried == ["refused", "refused"]


def test_after_a_drop_the_page_goes_on_where_it_was(tab, served):
    page = tab(complains="the connection")
    chip(page, 3).click()
    expect(page.locator("#details")).to_contain_text("Next: French", timeout=20_000)
    served.stop()
    try:
        expect(page.locator("#page")).to_contain_text("The connection is lost")
        expect(page.locator("#details")).to_contain_text("Next: French")
        chip(page, 5).click()
    finally:
        served.start()
    expect(page.locator("#page")).not_to_contain_text("The connection is lost", timeout=20_000)
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)
    chip(page, 3).click()
    expect(page.locator("#details .said")).to_contain_text("Next: French")


def test_a_drop_in_mid_stream_keeps_what_came_and_reads_the_rest_later(tab, served, slow):
    page = tab("A text of its own: people in Paris speak", complains="the connection")
    chip(page, 9).click()
    said = page.locator("#details .said")
    expect(said).to_contain_text("About")
    early = said.inner_text()
    served.stop()
    try:
        expect(page.locator("#state")).to_contain_text("The connection is lost")
        assert said.inner_text().startswith(early)
        expect(page.locator("#details")).to_have_attribute("aria-busy", "true")
    finally:
        served.start()
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)
    assert len(said.inner_text()) > len(early)


def test_a_server_that_is_killed_in_the_middle(context):
    script = "from nnsight_nla.cli import main; main()"
    command = [sys.executable, "-c", script, "view", PROMPT, "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as running:
        try:
            page = context.new_page()
            page.goto(running.stdout.readline().strip())
            chip(page, 3).click()
            expect(page.locator("#details")).to_contain_text("Next: French", timeout=20_000)
            chip(page, 5).click()
        finally:
            running.send_signal(signal.SIGKILL)
    expect(page.locator("#page")).to_contain_text("The connection is lost")
    chip(page, 3).click()
    expect(page.locator("#details .said")).to_contain_text("Next: French")


def test_a_compared_patched_and_steered_token(tab, served, screenshots):
    page = tab("People in Rome speak")
    chip(page, 3).click()
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)
    page.get_by_role("button", name="compare with").click()
    chip(page, 2).click()
    expect(page.locator(".result")).to_contain_text("cosine of the two", timeout=20_000)
    page.get_by_role("button", name="close").click()
    chip(page, 2).click()
    page.get_by_role("button", name="edit, steer").click()
    page.locator("#edited").fill("About Paris, the capital of France; neutral tone.")
    page.get_by_role("button", name="steer", exact=True).click()
    expect(page.locator(".result")).to_contain_text("the target goes on", timeout=20_000)
    page.get_by_role("button", name="close").click()
    page.get_by_role("button", name="patch into").click()
    chip(page, 1).click()
    expect(page.locator(".result")).to_contain_text("KL of the output", timeout=20_000)
    expect(page.locator(".t.cell")).to_have_count(1)
    page.screenshot(path=screenshots / "live-patch.png")


def test_hostile_text_is_text(tab, nla, monkeypatch):
    page = tab(HOSTILE)
    chip(page, 2).click()
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)
    assert page.locator("img").count() == 0
    page.get_by_label("A text to read").fill(HOSTILE)
    page.get_by_role("button", name="open").click()
    expect(page.locator("#texts")).to_contain_text("onerror")
    assert page.locator("img").count() == 0
