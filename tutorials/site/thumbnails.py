"""Take the gallery's pictures from the built site: the last figure of each tutorial, in Chromium.

    sphinx-build -b html tutorials /tmp/site
    python -m tutorials.site.thumbnails /tmp/site       # writes tutorials/thumbnails/*.png

A tutorial without a figure shows its reading page or its first cell.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

TUTORIALS = Path(__file__).parents[1]
THUMBNAILS = TUTORIALS / "thumbnails"
WIDTH, HEIGHT = 700, 440
CODE = ".cell_input"
SHOWN = (".plotly-graph-div", ".cell_output iframe", CODE)
"""What is photographed, the best first; of several figures or pages the last one."""


def photograph(page: Page, source: Path, picture: Path) -> None:
    """Photograph one tutorial's figure, without what lies over it."""
    page.goto(source.as_uri())
    page.wait_for_timeout(1000)
    kind = next(each for each in SHOWN if page.query_selector(each))
    found = page.query_selector_all(kind)
    shown = found[0] if kind == CODE else found[-1]
    shown.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    box = shown.bounding_box()
    assert box is not None, source  # it is on the page
    clip = {
        "x": box["x"],
        "y": box["y"],
        "width": min(box["width"], WIDTH),
        "height": min(max(box["height"], HEIGHT / 2), HEIGHT),
    }
    page.screenshot(path=picture, clip=clip, animations="disabled")  # pyright: ignore


def main() -> None:
    """Photograph all tutorials of a built site."""
    parser = argparse.ArgumentParser(description="Take the gallery's pictures from the built site.")
    parser.add_argument("site", type=Path, help="the folder that sphinx-build wrote")
    site = parser.parse_args().site.resolve()
    THUMBNAILS.mkdir(exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        for notebook in sorted(TUTORIALS.glob("*.ipynb")):
            picture = THUMBNAILS / f"{notebook.stem}.png"
            photograph(page, site / f"{notebook.stem}.html", picture)
            sys.stdout.write(f"{picture} {picture.stat().st_size:,}\n")
        browser.close()


if __name__ == "__main__":
    main()
