"""A live page on a phone: touched, 390 pixels wide, light and dark."""

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from .conftest import Watched
from .served import PROMPT, Served

LONG = " ".join(["What a lovely day!", PROMPT, "barn."] * 12)
WIDTH, HEIGHT = 390, 844


@pytest.fixture
def phone(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    opened = browser.new_context(
        color_scheme=getattr(request, "param", "light"),
        viewport={"width": WIDTH, "height": HEIGHT}, has_touch=True,
        is_mobile=True, reduced_motion="reduce",
    )  # fmt: skip
    yield opened
    opened.close()


@pytest.fixture
def open_page(phone: BrowserContext, served: Served) -> Iterator[Callable[[str], Page]]:
    seen: list[Watched] = []

    def opened(prompt: str) -> Page:
        served.session.runs.clear()
        served.session.open(prompt)
        watched = Watched(phone.new_page()).watch()
        seen.append(watched)
        watched.page.goto(served.address)
        expect(chips(watched.page).first).to_be_visible()
        return watched.page

    yield opened
    for watched in seen:
        assert watched.complaints == []


def chips(page: Page):
    return page.locator("#texts .t")


def explained(page: Page) -> None:
    expect(page.locator("#details")).to_contain_text("denominator", timeout=20_000)


def tap(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).tap()


def top(page: Page, selector: str) -> float:
    return page.locator(selector).bounding_box()["y"]


def in_sight(page: Page, selector: str) -> None:
    """Nothing lies over the middle of an element, and it is on the screen."""
    assert page.locator(selector).evaluate(
        """made => {
          const { left, top, width, height } = made.getBoundingClientRect();
          const there = document.elementFromPoint(left + width / 2, top + height / 2);
          return there !== null && (made.contains(there) || there.contains(made));
        }"""
    ), selector


def no_wider_than_the_screen(page: Page) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == WIDTH


@pytest.mark.parametrize("phone", ["light", "dark"], indirect=True)
def test_a_token_is_read_and_its_card_leaves_the_text_to_be_seen(open_page, screenshots, request):
    page = open_page(PROMPT)
    for keys in ("#keys", ".search kbd"):
        expect(page.locator(keys)).to_be_hidden()
    expect(page.locator("#details")).to_contain_text("Not read yet: tap it.")
    before = top(page, "#texts")
    chips(page).nth(3).tap()
    expect(page.locator("#details .said")).to_contain_text("About")
    explained(page)
    assert top(page, "#texts") == before, "the text stays under the finger"
    assert top(page, "#details") >= before + page.locator("#texts").bounding_box()["height"]
    no_wider_than_the_screen(page)
    assert re.search("Enter|Esc|press", page.locator("body").inner_text()) is None, "no keys"
    scheme = request.node.callspec.params["phone"]
    page.screenshot(path=screenshots / f"phone-{scheme}.png")


def test_a_token_at_the_foot_of_a_long_text_stays_above_its_card(open_page, screenshots):
    page = open_page(LONG)
    at_the_foot = page.evaluate(
        """() => [...document.querySelectorAll("#texts .t")].findLastIndex(
            each => each.getBoundingClientRect().bottom < innerHeight - 130)"""
    )
    token = chips(page).nth(at_the_foot)
    token.tap()
    explained(page)
    box = token.bounding_box()
    assert box["y"] + box["height"] <= top(page, "#details")
    in_sight(page, ".t.pinned")
    no_wider_than_the_screen(page)
    page.screenshot(path=screenshots / "phone-long.png")


def test_experiments_are_in_reach_of_a_finger(open_page, screenshots):
    page = open_page(LONG)
    chips(page).nth(30).tap()
    explained(page)
    page.get_by_role("button", name="compare with").tap()
    expect(page.locator("#state")).to_contain_text("Tap the token to compare it with.")
    in_sight(page, "#state")
    tap(page, "cancel")
    expect(page.locator("#state")).to_be_hidden()

    page.get_by_role("button", name="compare with").tap()
    chips(page).nth(29).tap()
    expect(page.locator(".result")).to_contain_text("cosine of the two", timeout=20_000)
    in_sight(page, ".result .head")
    page.screenshot(path=screenshots / "phone-compare.png")
    tap(page, "close")

    tap(page, "edit, steer")
    in_sight(page, "#edited")
    tap(page, "steer")
    expect(page.locator(".result")).to_contain_text("Edit the explanation first")
    page.locator("#edited").fill("About Rome, the capital of Italy; neutral tone.")
    tap(page, "steer")
    expect(page.locator(".result")).to_contain_text("the target goes on", timeout=20_000)
    no_wider_than_the_screen(page)
    page.screenshot(path=screenshots / "phone-steer.png")
    tap(page, "close")

    page.get_by_role("button", name="patch into").tap()
    chips(page).nth(29).tap()
    expect(page.locator(".result")).to_contain_text("KL of the output", timeout=20_000)
    expect(page.locator(".t.cell")).to_have_count(1)
    in_sight(page, ".result .head")
    no_wider_than_the_screen(page)
    page.screenshot(path=screenshots / "phone-patch.png")


def test_what_waits_is_cancelled_without_a_key(open_page):
    page = open_page(LONG)
    tap(page, "read all")
    tap(page, "cancel")
    expect(page.locator(".t.waiting")).to_have_count(0)
    expect(page.get_by_role("button", name="read all")).to_be_visible()
    expect(chips(page).last).to_have_class(re.compile("unread"))
