"""The README's pictures: a real reading of the embedded pair, clean beside patched, in Chromium.

python tests/browser/picture.py     # writes reading.png and reading_moving.png, tutorials/reference

The moving one is an animated PNG: a browser plays it, and what cannot shows its first frame. It
plays three times, and stops on the frame that is the still picture.
"""

import io
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw
from playwright.sync_api import Page, sync_playwright

from nnsight_nla import tiny
from nnsight_nla.reading.records import Reading

FOLDER = Path(__file__).parents[2] / "tutorials" / "reference"
STILL, MOVING = FOLDER / "reading.png", FOLDER / "reading_moving.png"
TEXT = "What a lovely day! People in Paris speak French."
PARIS, SPEAK = 7, 8
WIDTH, HEIGHT, SCALE = 880, 1020, 2
"""The window, in CSS pixels, and its resolution; pictures end below the explanations."""
MARGIN = 0
LARGEST = 2_000_000
ALONE = ((2, 2000), (PARIS, 2000), (SPEAK, 2500))
"""Which token of the one text the pointer is on, and for how many milliseconds."""
BESIDE = ((6, 2000), (PARIS, 2500))
"""The same, with the patched text next to it; the last frame has a token pinned."""
LAST = 5000


def readings() -> tuple[Reading, Reading]:
    """The text as it is, and with the residual of *Paris* replaced by that of *Rome*, once."""
    model, nla = tiny.load()
    with model.trace(TEXT.replace("Paris", "Rome")):
        residual_of_rome = model.model.layers[0].output[0, PARIS].save()
    with model.edit() as (_, edited):
        edited.model.layers[0].output[:, PARIS] = residual_of_rome
    return nla.read(model, TEXT), nla.read(edited, TEXT)


def check(clean: Reading, patched: Reading) -> None:
    """Check that the pictures show what their texts say, and a token without a warning."""
    for reading, city, language in ((clean, "Paris", "French"), (patched, "Rome", "Italian")):
        said = reading[SPEAK]
        assert reading[PARIS].token == " Paris"
        assert said.token == " speak"
        assert f"About {city}" in str(said.explanation), said
        assert f"Next: {language}" in str(said.explanation), said
        assert said.grade == "strong", said
        for shown in (reading[2], reading[6], reading[PARIS], said):
            assert not shown.warnings, shown


def photograph(page: Page, position: int | None = None) -> Image.Image:
    """The page, with a pointer on a token of the first text."""
    if position is not None:
        page.locator(f"#t0-{position}").hover()
    shown = page.screenshot(animations="disabled")
    picture = Image.open(io.BytesIO(shown)).convert("RGB")
    if position is not None:
        box = page.locator(f"#t0-{position}").bounding_box()
        assert box is not None
        tip = box["x"] + 0.6 * box["width"], box["y"] + 0.62 * box["height"]
        _pointer(picture, *(SCALE * each for each in tip))
    return picture


def _pointer(picture: Image.Image, x: float, y: float) -> None:
    """Draw the arrow that a screenshot leaves out."""
    arrow = [(0, 0), (0, 17), (4, 13), (7, 19), (9.5, 18), (6.8, 12.2), (12, 12)]
    points = [(x + SCALE * a, y + SCALE * b) for a, b in arrow]
    draw = ImageDraw.Draw(picture)
    draw.polygon(points, fill="black")
    draw.line([*points, points[0]], fill="white", width=SCALE, joint="curve")


def frames(clean: Reading, patched: Reading, folder: Path) -> list[tuple[Image.Image, int]]:
    """The frames, and how long each is shown."""
    pages = (
        clean.to_html(folder / "clean.html"),
        clean.to_html(folder / "both.html", beside=patched),
    )
    made: list[tuple[Image.Image, int]] = []
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE
        )
        page = context.new_page()
        for path, steps in zip(pages, (ALONE, BESIDE), strict=True):
            page.goto(path.as_uri())
            made += [(photograph(page, position), shown) for position, shown in steps]
        page.locator(f"#t0-{SPEAK}").click()
        made.append((photograph(page, SPEAK), LAST))
        page.mouse.move(0, 0)
        made.append((photograph(page), LAST))
        box = page.locator("#details").bounding_box()
        browser.close()
    assert box is not None
    below = int(SCALE * (box["y"] + box["height"] + MARGIN))
    return [(each.crop((0, 0, each.width, below)), shown) for each, shown in made]


def main() -> None:
    """Write both pictures."""
    clean, patched = readings()
    check(clean, patched)
    with tempfile.TemporaryDirectory() as folder:
        made = frames(clean, patched, Path(folder))
    *moving, (still, _) = made
    still.save(STILL, optimize=True)
    first, *others = [each for each, _ in moving]
    first.save(
        MOVING,
        save_all=True,
        append_images=others,
        duration=[shown for _, shown in moving],
        loop=3,
        optimize=True,
    )
    for picture in (STILL, MOVING):
        size = picture.stat().st_size
        assert size < LARGEST, (picture, size)
        print(picture, size)


if __name__ == "__main__":
    main()
