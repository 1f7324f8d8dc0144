"""Write the parts of the README that are made: checkpoints, the oracle's figures, and the gallery.

    python -m tutorials.site.readme

A test compares the README with what this makes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from nnsight_nla import tiny
from tutorials.recipes import published
from tutorials.recipes.tiny import oracle_figures

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
HOST = "https://github.com/nnsight-nla/nnsight_nla/blob/main"
RAW = "https://raw.githubusercontent.com/nnsight-nla/nnsight_nla/main"
COLUMNS = 4
_FIGURE = re.compile(r"figure:: thumbnails/(\w+)\.png\n.*\n\s+:alt: (.+)")


def gallery() -> str:
    """Return the tutorials of the site's gallery as a table of pictures, in Markdown."""
    text = (ROOT / "tutorials" / "tutorials.rst").read_text("utf-8")
    found = _FIGURE.findall(text)
    cells = [
        f"[![{title}]({RAW}/tutorials/thumbnails/{name}.png)<br>{title}]({HOST}/tutorials/{name}.ipynb)"
        for name, title in found
    ]
    cells += [""] * (-len(cells) % COLUMNS)
    rows = [cells[at : at + COLUMNS] for at in range(0, len(cells), COLUMNS)]
    lines = ["|".join(row) for row in rows]
    lines.insert(1, "|".join(["---"] * COLUMNS))
    return "\n".join(f"|{line}|" for line in lines)


def oracle() -> str:
    """Return the share of held-out questions that the tiny oracle answers right, in Markdown."""
    file = Path(tiny.__file__).parent / "oracle_figures.json"
    table = oracle_figures.table(json.loads(file.read_text("utf-8")))
    return re.sub(r" ?\| ?", "|", table)


def parts() -> Iterator[tuple[str, str]]:
    """Yield the name of each part, and its text."""
    yield "published", published.table()
    yield "oracle", oracle()
    yield "gallery", gallery()


def made(text: str) -> str:
    """Return the README's text with its parts made anew."""
    for name, part in parts():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n\n{part}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    README.write_text(made(README.read_text("utf-8")), "utf-8")
