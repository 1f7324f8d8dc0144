"""Make the README's diagram from its drawing: package indices show no SVG from a code host.

python -m tutorials.site.diagram        # reference/two_models.svg -> two_models.png
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

DRAWING = Path(__file__).parents[1] / "reference" / "two_models.svg"
WIDTH, HEIGHT, SCALE = 1000, 330, 2


def main() -> None:
    """Photograph the drawing in Chromium."""
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SCALE
        )
        page.goto(DRAWING.as_uri())
        page.screenshot(path=DRAWING.with_suffix(".png"), omit_background=True)
        browser.close()


if __name__ == "__main__":
    main()
