"""The README's picture: a real page of the embedded pair, clean beside patched, in Chromium.

python tests/browser/picture.py     # writes tutorials/reference/reading.png
"""

import os
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from nnsight_nla import tiny
from nnsight_nla.reading.records import Reading

PICTURE = Path(__file__).parents[2] / "tutorials" / "reference" / "reading.png"
TEXT = (
    "What a lovely day! People in Paris speak French. Paris is the capital of France. "
    "Shops in Paris take the euro."
)


def readings() -> tuple[Reading, Reading]:
    """The text as it is, and with the residual of *Paris* replaced by that of *Rome*, once."""
    model, nla = tiny.load()
    clean = nla.read(model, TEXT)
    where = next(each.position for each in clean if each.token.strip() == "Paris")
    with model.trace(TEXT.replace("Paris", "Rome")):
        rome = model.model.layers[0].output[0, where].save()
    with model.edit() as (_, edited):
        edited.model.layers[0].output[:, where] = rome
    return clean, nla.read(edited, TEXT)


def photograph(page: Path, picture: Path) -> None:
    """The page with the token pinned that comes before the language."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1180, "height": 800})
        opened.goto(f"{page.as_uri()}#t0-8")
        shown = {"x": 0, "y": 0, "width": 1180, "height": 625}
        opened.screenshot(path=picture, animations="disabled", clip=shown)
        browser.close()


if __name__ == "__main__":
    clean, patched = readings()
    with tempfile.TemporaryDirectory() as folder:
        labels = ("clean", "Paris patched to Rome, block 0")
        page = clean.to_html(Path(folder) / "reading.html", beside=patched, labels=labels)
        photograph(page, PICTURE)
    print(PICTURE, PICTURE.stat().st_size)
