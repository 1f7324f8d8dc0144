"""The site's first picture: a live page of the embedded pair, in Chromium, as an animated PNG.

python -m tests.browser.picture_live     # writes look_around.png, tutorials/reference

It plays three times, and stops on a frame with a whole card.
"""

import io
import os
import shutil
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

from nnsight_nla import tiny
from nnsight_nla.live import Session
from tests.browser.served import serving

PATH = Path(__file__).parents[2] / "tutorials" / "reference" / "look_around.png"
TEXT = "What a lovely day! People in Paris speak French."
PARIS, SPEAK = 7, 8
WIDTH, HEIGHT, SCALE = 960, 560, 1.5
LARGEST = 1_000_000
STEP, SHOWN, LAST = 120, 1500, 4000
"""How long a frame of a growing text is shown, a card, and the last one, in milliseconds."""


def photograph(page: Page) -> Image.Image:
    """The window as it is."""
    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def slowed(nla) -> None:
    """Make each step of the verbalizer take as long as one of a large model."""
    nla.av.dispatch()
    real = nla.av._module.forward

    def forward(*args, **kwargs):
        time.sleep(0.25)
        return real(*args, **kwargs)

    nla.av._module.forward = forward


def frames(page: Page) -> list[tuple[Image.Image, int]]:
    """The pictures and how long each is shown: a token is clicked, and its text streams in."""
    chips, details = page.locator(".t"), page.locator("#details")
    expect(chips.first).to_be_visible()
    found = [(photograph(page), SHOWN)]
    for position, last in ((PARIS, SHOWN), (SPEAK, LAST)):
        chips.nth(position).click()
        expect(details).to_contain_text("About", timeout=60_000)
        while details.get_attribute("aria-busy") == "true":
            picture = photograph(page)
            if picture.tobytes() != found[-1][0].tobytes():
                found.append((picture, STEP))
        expect(details).to_contain_text("denominator")
        expect(details).to_contain_text("About Paris")
        expect(details.locator(".grade")).to_have_text("strong")
        page.mouse.move(10, HEIGHT - 10)
        found.append((photograph(page), last))
    return found


def main() -> None:
    model, nla = tiny.load()
    session = Session(model, nla)
    nla.read(model, TEXT, positions=0)  # The controls of the labels, before anything is shown.
    session.open(TEXT)
    slowed(nla)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with serving(session) as served, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        size = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=size, device_scale_factor=SCALE)
        page.goto(served.address)
        taken = frames(page)
        browser.close()
    # One palette, so that equal parts of two frames are equal bytes.
    palette = taken[-1][0].quantize(colors=64)
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture, _ in taken]
    durations = [shown for _, shown in taken]
    pictures[0].save(
        PATH, save_all=True, append_images=pictures[1:], duration=durations, loop=3, optimize=True
    )
    assert PATH.stat().st_size < LARGEST, PATH.stat().st_size
    print(f"{PATH}: {len(pictures)} frames, {PATH.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
