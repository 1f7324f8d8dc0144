"""A real Chromium (Debian's), headless, with an eye on everything that a page tries.

    apt-get install chromium && pytest tests/browser

`show(reading, ...)` opens a reading's page and fails the test afterwards if the page raised, asked
for anything but itself, opened a dialog or ran into its own content security policy. Screenshots
go to the folder that `SCREENSHOTS` names, a temporary one otherwise.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from nnsight_nla.live import Session
from nnsight_nla.reading.records import Reading, TokenReading
from nnsight_nla.storage.cache import cache_folder

from .served import Served, serving

AXE = "4.10.3"


@dataclass
class Watched:
    """A page, and what it tried to do."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def watch(self) -> "Watched":
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(f"raised {error}"))
        self.page.on("console", lambda line: self.complaints.append(f"console: {line.text}"))
        self.page.on("dialog", self._dialog)
        self.page.on("popup", lambda page: self.complaints.append(f"popup {page.url}"))
        return self

    @property
    def outside(self) -> list[str]:
        """Requests for anything but the page itself."""
        return [url for url in self.requests if not url.startswith(("file:", "data:,", "about:"))]

    def _dialog(self, dialog) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium: apt-get install chromium, or set CHROMIUM to one")
    with sync_playwright() as playwright:
        # The sandbox needs a user that is not root.
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def context(browser: Browser, request: pytest.FixtureRequest) -> Iterator[BrowserContext]:
    scheme = getattr(request, "param", "light")
    opened = browser.new_context(
        color_scheme=scheme, viewport={"width": 1280, "height": 760}, reduced_motion="reduce"
    )
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def served(pair) -> Iterator[Served]:
    """The embedded pair's live page, on a server that a test may stop and start."""
    with serving(Session(*pair)) as made:
        yield made


@pytest.fixture
def show(context: BrowserContext, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    seen: list[Watched] = []

    def open_page(reading: Reading, **options) -> Page:
        path = reading.to_html(tmp_path / f"page-{len(seen)}.html", **options)
        watched = Watched(context.new_page()).watch()
        seen.append(watched)
        watched.page.goto(path.as_uri())
        return watched.page

    yield open_page
    for watched in seen:
        assert watched.outside == []
        assert watched.complaints == []


@pytest.fixture(scope="session")
def axe() -> Callable[[Page], list[str]]:
    """What axe-core, of the npm registry, finds on a page: one line for each violation."""
    folder = cache_folder() / f"axe-core-{AXE}"
    script = folder / "node_modules" / "axe-core" / "axe.min.js"
    if not script.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("no npm, which axe-core comes from")
        command = [npm, "install", "--silent", "--prefix", str(folder), f"axe-core@{AXE}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not script.exists():
            pytest.skip(f"axe-core was not installed: {done.stderr.strip()[-200:]}")
    source = script.read_text("utf-8")

    def violations(page: Page) -> list[str]:
        # The browser's own evaluate is not bound by the page's content security policy.
        page.evaluate("source => { new Function(source)(); }", source)
        found = page.evaluate("async () => (await axe.run()).violations")
        return [
            f"{each['id']}: {each['help']}: {[node['html'][:120] for node in each['nodes'][:3]]}"
            for each in found
        ]

    return violations


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    named = os.environ.get("SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    print(f"screenshots: {folder}")
    return folder


def made(words: list[str], says: Callable[[int, str], str], **changes) -> Reading:
    """A reading without a model: each word with what `says` makes of it."""
    records = tuple(
        TokenReading(
            position=place,
            token=word,
            part="prompt",
            explanation=says(place, word),
            norm=10.0 + place % 7,
            reconstruction_cosine=0.5 + (place % 5) / 10,
            **changes,
        )
        for place, word in enumerate(words)
    )
    return Reading(records, "target", "av", 3)


LOREM = (
    "The text is about the harbour of a northern city and its ferries; the tone is matter of fact. "
    "A timetable is being read out, and the clause has just named the hour of the last departure. "
    "After: {}. Next: a place name, most likely that of an island, or the word for the return trip."
)


def long(tokens: int) -> Reading:
    """A reading as long as real ones are, explanations of 60 words included."""
    words = [[" harbour", " ferry", ",", " the", " hour", ".\n"][i % 6] for i in range(tokens)]
    return made(words, lambda place, word: LOREM.format(f"{word.strip()} {place}"))
