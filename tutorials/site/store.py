"""Store the outputs of the executed notebooks in the notebooks, for readers on a code host.

    sphinx-build -b html tutorials /tmp/site            # executes what is not in the cache
    python -m tutorials.site.store                      # writes tutorials/*.ipynb
    python -m tutorials.site.store --pictures           # ... and takes every picture anew
    python -m tutorials.site.store --check              # exit code 1 if they would differ

Progress bars, timings, and where files are on this machine are left out. Figures and reading pages
become pictures, since code hosts run no scripts. The check compares texts and tables: numbers may
differ by one percent, or by 0.02 where they are small, as they do between processors; pictures,
dates and digests are not compared, and of a cell with the tag ``random``, which draws at a
temperature or measures what was trained on such draws, only the kinds of its outputs are.
"""

from __future__ import annotations

import argparse
import base64
import copy
import difflib
import itertools
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from jupyter_cache import get_cache
from playwright.sync_api import sync_playwright
from plotly.offline import get_plotlyjs

from . import execution
from .outputs import SCRIPT, neutral

_TIMING = re.compile(r"\b\d+(?:\.\d+)? (s|ms|seconds)\b")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_PLAIN = re.compile(r" at 0x[0-9a-f]+")
_DIGEST = re.compile(r"\b(?=\d*[a-f])[0-9a-f]{20,64}\b")
_DATE = re.compile(r"\b20\d\d-\d\d-\d\d\b")
_SPACES = re.compile(r"[ \t]+")  # a column is as wide as its longest number
_STYLE = re.compile(r"<style.*?</style>", re.DOTALL)
RANDOM = "random"
"""The tag of a cell whose outputs are drawn: they differ between processors."""
_WIDGET = "application/vnd.jupyter.widget-view+json"
_FIGURE, _PAGE = "plotly-graph-div", "<iframe"

Photograph = Callable[[str], str]


def executed() -> Iterator[tuple[Path, Any]]:
    """Yield each notebook that can be executed here, with its outputs from the cache.

    Raises:
        SystemExit: One was not executed since the package changed.
    """
    cache, without = get_cache(str(execution.cache())), execution.not_executed()
    for path in sorted(execution.FOLDER.glob("*.ipynb")):
        if path.name in without:
            continue
        try:
            _, found = cache.merge_match_into_notebook(nbformat.read(path, as_version=4))
        except KeyError:
            sys.exit(f"{path.name} is not in the cache. Type: sphinx-build -b html tutorials SITE")
        yield path, found


def stripped(outputs: list[Any], photograph: Photograph) -> list[dict[str, Any]]:
    """Return outputs as they are stored: the same on every machine, and without scripts."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] != "stdout":
                continue
            text = _same(output["text"])
            if kept and kept[-1]["output_type"] == "stream":  # a progress bar was between
                kept[-1]["text"] += text
            else:
                kept.append({"name": "stdout", "output_type": "stream", "text": text})
            continue
        bundle = _bundle(output["data"], photograph)
        if bundle:
            kept.append({"data": bundle, "metadata": {}, "output_type": "display_data"})
    return kept


def _bundle(bundle: dict[str, str], photograph: Photograph) -> dict[str, str]:
    if _WIDGET in bundle:  # code hosts show none
        return {}
    html = bundle.get("text/html", "")
    plain = {"text/plain": _same(bundle["text/plain"])} if "text/plain" in bundle else {}
    if _FIGURE in html or _PAGE in html:
        return {"image/png": photograph(html), **plain}
    if "<script" in html:  # what a first figure does before
        return plain
    return {"text/html": _same(_STYLE.sub("", html)), **plain} if html else plain


def _same(text: str) -> str:
    return _TIMING.sub(r"… \1", _PLAIN.sub("", neutral(text)))


def differs(stored: list[Any], fresh: list[Any], *, random: bool = False) -> bool:
    """Return whether outputs differ in more than pictures and the last digits of numbers.

    Args:
        stored: The outputs of one cell, as they are in the notebook.
        fresh: Those of the execution, stripped.
        random: Compare only the kinds of the outputs, as for a cell that draws.
    """
    if random:
        return [_kinds(each) for each in stored] != [_kinds(each) for each in fresh]
    old, new = _texts(stored), _texts(fresh)
    if _NUMBER.sub("0", old) != _NUMBER.sub("0", new):
        return True
    pairs = zip(_NUMBER.findall(old), _NUMBER.findall(new), strict=True)
    return any(abs(float(a) - float(b)) > max(0.02, 0.01 * abs(float(b))) for a, b in pairs)


def difference(stored: list[Any], fresh: list[Any]) -> str:
    """Return the first lines that differ, as a unified diff without context."""
    old, new = _texts(stored).splitlines(), _texts(fresh).splitlines()
    lines = difflib.unified_diff(old, new, "stored", "executed", lineterm="", n=0)
    return "\n".join(itertools.islice(lines, 20))


def _kinds(output: Any) -> list[str]:
    return sorted(output.get("data", ["stream"]))


def _texts(outputs: list[Any]) -> str:
    parts: list[str] = []
    for output in outputs:
        bundle = output.get("data", {"text/plain": output.get("text", "")})
        parts += [
            f"{kind}\n{_joined(text)}" for kind, text in bundle.items() if "image" not in kind
        ]
        parts += [kind for kind in bundle if "image" in kind]
    return _SPACES.sub(" ", _DATE.sub("…", _DIGEST.sub("…", "\n".join(parts))))


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def main() -> None:
    """Store the outputs, or compare them with those that are stored."""
    parser = argparse.ArgumentParser(description="Store the notebooks' outputs in them.")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    parser.add_argument("--pictures", action="store_true", help="take every picture anew")
    arguments = parser.parse_args()
    check: bool = arguments.check
    changed: list[str] = []
    with tempfile.TemporaryDirectory() as folder, _camera(Path(folder), off=check) as photograph:
        for path, notebook in executed():
            stored = nbformat.read(path, as_version=4)
            before = copy.deepcopy(stored)
            cells = zip(stored.cells, notebook.cells, strict=True)
            for place, (cell, ran) in enumerate(cells):
                if cell.cell_type != "code":
                    continue
                fresh = stripped(ran.outputs, photograph)
                drawn = check and RANDOM in cell.metadata.get("tags", ())
                different = differs(cell.outputs, fresh, random=drawn)
                if different and check:
                    said = difference(cell.outputs, fresh)
                    sys.stdout.write(f"{path.name}, cell {place}:\n{said}\n")
                if different or (arguments.pictures and "image" in str([*map(_kinds, fresh)])):
                    cell.outputs = [nbformat.from_dict(each) for each in fresh]
            if stored != before:
                changed.append(path.name)
                if not check:
                    nbformat.write(stored, path)
    sys.stdout.write("".join(f"{'differs' if check else 'written'}: {name}\n" for name in changed))
    if check and changed:
        sys.exit("Type: python -m tutorials.site.store, and read the difference")


class _camera:  # noqa: N801
    """Turn the HTML of an output into a PNG, in Chromium."""

    def __init__(self, folder: Path, *, off: bool) -> None:
        self.folder, self.off = folder, off

    def __enter__(self) -> Photograph:
        if self.off:
            return lambda _: ""
        (self.folder / SCRIPT).write_text(get_plotlyjs(), "utf-8")
        self.playwright = sync_playwright().start()
        chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
        self.browser = self.playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        self.page = self.browser.new_page(viewport={"width": 860, "height": 640})
        return self.photograph

    def photograph(self, html: str) -> str:
        page = self.folder / "output.html"
        page.write_text(f"<meta charset='utf-8'><body>{neutral(html, SCRIPT)}", "utf-8")
        self.page.goto(page.as_uri())
        self.page.wait_for_timeout(1000)
        shown = self.page.query_selector(f".{_FIGURE}, iframe")
        assert shown is not None  # `_bundle` found one
        return base64.b64encode(shown.screenshot(animations="disabled")).decode()

    def __exit__(self, *_: object) -> None:
        if not self.off:
            self.browser.close()
            self.playwright.stop()


if __name__ == "__main__":
    main()
