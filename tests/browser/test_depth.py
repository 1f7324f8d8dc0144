"""Reading by depth, with an NLA of each of three blocks: a column for each, live and in a file."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from playwright.sync_api import Page, expect

from nnsight_nla import NLA, tiny
from nnsight_nla.checkpoint.checkpoint import Checkpoint
from nnsight_nla.live import Session
from nnsight_nla.reading.records import Reading

from .conftest import Watched
from .served import PROMPT, serving

LAYERS = (0, 3, 4)
SPEAK = 3


@pytest.fixture(scope="module")
def nlas(pair) -> list[NLA]:
    """The tiny pair's NLA, and its verbalizer as if it had been trained on two other blocks."""
    paths = tiny.paths()
    known = Checkpoint.load(paths["av"])
    others = {
        layer: NLA(
            paths["av"],
            checkpoint=replace(known, layer=layer, baseline=None),
            dtype=torch.float32,
        )
        for layer in (0, 4)
    }
    return [others[0], pair[1], others[4]]


@pytest.fixture(scope="module")
def readings(pair, nlas) -> list[Reading]:
    return [nla.read(pair[0], PROMPT, positions=[SPEAK, -1]) for nla in nlas]


@pytest.fixture
def live(pair, nlas, context) -> Iterator[Page]:
    """A live page of the three, none of whose tokens was read."""
    session = Session(pair[0], nlas[::-1])
    session.open(PROMPT)
    with serving(session) as served:
        watched = Watched(context.new_page()).watch()
        watched.page.goto(served.address)
        yield watched.page
        watched.page.close()
    assert watched.complaints == []


def heads(page: Page) -> list[str]:
    return page.locator("#details .card .where").all_inner_texts()


def in_columns(page: Page) -> None:
    """The cards are next to each other, in the order of their blocks."""
    boxes = [card.bounding_box() for card in page.locator("#details .card").all()]
    assert len({box["y"] for box in boxes}) == 1
    assert [box["x"] for box in boxes] == sorted(box["x"] for box in boxes)
    assert heads(page) == [f"position {SPEAK} · block {layer}" for layer in LAYERS]


@pytest.mark.parametrize("context", ["light", "dark"], indirect=True)
def test_a_click_on_a_live_page_is_read_at_each_block(live, readings, screenshots, request):
    expect(live.locator("#about")).to_contain_text("blocks 0, 3 and 4 of")
    live.locator("#texts .t").nth(SPEAK).click()
    said = live.locator("#details .card .said")
    for column, reading in enumerate(readings):
        for line in reading[SPEAK].explanation.splitlines():
            expect(said.nth(column)).to_contain_text(line, timeout=20_000)
    assert len(set(said.all_inner_texts())) == len(LAYERS), "each block says something of its own"
    expect(live.locator("#details")).to_contain_text("denominator", timeout=20_000)
    in_columns(live)
    scheme = request.node.callspec.params["context"]
    live.screenshot(path=screenshots / f"depth-live-{scheme}.png")
    live.set_viewport_size({"width": 390, "height": 844})
    assert live.evaluate("document.documentElement.scrollWidth") == 390
    live.screenshot(path=screenshots / f"depth-phone-{scheme}.png")


def test_a_file_has_the_same_columns(readings, context, tmp_path, screenshots):
    page = context.new_page()
    page.goto(Reading.by_depth(readings).to_html(tmp_path / "depth.html").as_uri())
    page.click(f"#t0-{SPEAK}")
    in_columns(page)
    for column, reading in enumerate(readings):
        first = reading[SPEAK].explanation.splitlines()[0]
        expect(page.locator("#details .card .said").nth(column)).to_contain_text(first)
    assert page.locator("#table tbody tr").nth(SPEAK).locator("td").count() == 2 + len(LAYERS)
    page.screenshot(path=screenshots / "depth-file.png")
