"""Check that every link, anchor and picture of the built site leads somewhere in it.

    python -m tutorials.site.links /tmp/site

Links to other sites are listed, not visited: a build needs no network, and must not fail because
somebody else's server does. Exit code 1 if a link of the site itself is broken.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

_LINKS = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "src"}
# Made by scripts when a page is opened.
_MADE_LATER = ("search.html",)


class Page(HTMLParser):
    """The links and anchors of one page."""

    def __init__(self, text: str) -> None:
        """Read them from the page's text."""
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the links and anchors of one element."""
        found = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := found.get(key))}
        if link := found.get(_LINKS.get(tag, "")):
            self.links.add(link)


def broken(site: Path) -> Iterator[tuple[Path, str]]:
    """Yield each page with a link that leads nowhere."""
    pages = {path: Page(path.read_text("utf-8")) for path in site.rglob("*.html")}
    for path, page in pages.items():
        for link in sorted(page.links):
            if _is_external(link) or path.name in _MADE_LATER:
                continue
            address, anchor = urldefrag(link)
            target = (path.parent / unquote(urlsplit(address).path)).resolve() if address else path
            there = pages.get(target)
            missing = not target.is_file()
            if missing or (anchor and there and unquote(anchor) not in there.anchors):
                yield path.relative_to(site), link


def external(site: Path) -> dict[str, set[str]]:
    """Return the links to other sites, and the pages that have each."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in site.rglob("*.html"):
        for link in Page(path.read_text("utf-8")).links:
            if _is_external(link) and not link.startswith("data:"):
                found[link].add(path.relative_to(site).as_posix())
    return found


def _is_external(link: str) -> bool:
    return bool(urlsplit(link).scheme or urlsplit(link).netloc)


def main() -> None:
    """Print broken links and list the external ones."""
    parser = argparse.ArgumentParser(description="Check the links of the built site.")
    parser.add_argument("site", type=Path, help="the folder that sphinx-build wrote")
    site = parser.parse_args().site.resolve()
    wrong = list(broken(site))
    others = external(site)
    sys.stdout.write("".join(f"external: {link}\n" for link in sorted(others)))
    sys.stdout.write("".join(f"broken: {page}: {link}\n" for page, link in wrong))
    sys.stdout.write(f"{len(wrong)} broken links, {len(others)} external ones\n")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
