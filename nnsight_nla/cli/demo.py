"""``nnsight-nla demo``: explain a sentence with a bundled pair, and show what a patch changes."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.text import Text
from typer import Option

from . import demo_tables as tables
from . import options
from .app import command, out, print_json, spinner
from .pages import check_folder, open_page, try_to_write

if TYPE_CHECKING:
    from ..reading.records import Reading

PAGE = Path("nnsight-nla-demo.html")
"""The page, in the current folder."""


@command()
def demo(
    sentences: Annotated[
        int | None,
        Option(
            min=1,
            metavar="N",
            help="The number of sentences to read. Default: 1; with --all or --json, 2.",
        ),
    ] = None,
    seed: Annotated[
        int, Option(metavar="N", help="The seed that chooses the sentences (tiny only).")
    ] = 3,
    model: options.DemoModel = "tiny",
    everything: Annotated[
        bool, Option("--all", help="Show every token with its full explanation.")
    ] = False,
    html: Annotated[
        Path | None,
        Option(
            metavar="FILE",
            help=f"Write the first sentence as an HTML page to this file. Default: {PAGE} in the "
            "current folder; no page with --json.",
        ),
    ] = None,
    browser: options.Open = False,
    as_json: options.AsJson = False,
) -> None:
    """Explain a sentence with a bundled model, and patch one fact into another.

    It runs offline on a CPU, and compares the explanations with what is known about the sentence.
    """
    check_folder(html)
    count = sentences or (2 if everything or as_json else 1)
    page = html or (PAGE if browser or not as_json else None)
    shown = _smollm2 if model == "smollm2" else _tiny
    shown(count, seed, page, everything=everything, as_json=as_json)
    if browser and page is not None and page.is_file():
        open_page(page)


def _tiny(count: int, seed: int, page: Path | None, *, everything: bool, as_json: bool) -> None:
    with spinner("loading the tiny pair"):
        from .. import tiny
        from ..tiny.demo import documents, patch_fact, read_sentences

        target, nla = tiny.load()
    with spinner("explaining"):
        read = read_sentences(target, nla, count, seed)
        patched = patch_fact(target, nla)
        first = documents(count, seed)[0].text
        reading = None if page is None else nla.read(target, first)
    failed = _write(reading, page)
    if as_json:
        print_json(
            {"sentences": [list(map(asdict, each)) for each in read], "patch": asdict(patched)}
        )
        return
    for each in read:
        out.print(tables.sentence_table(each, everything=everything))
        out.print()
    out.print(tables.patch_table(patched))
    out.print()
    slots = [row.slots_right for each in read for row in each]
    right = f"{sum(slots)} of {6 * len(slots)} statements are right."
    out.print(right if everything else f"{right} To see all of them: nnsight-nla demo --all")
    if everything:
        out.print(
            "The sentences combine subjects and tones that were never combined in training. "
            "The target was trained to represent this state, so the truth is known; outside its "
            "made-up world the verbalizer makes things up. For measurements with controls, see "
            "nnsight_nla.tiny.figures()",
            highlight=False,
        )
    _say(page, failed)


def _smollm2(count: int, _seed: int, page: Path | None, *, everything: bool, as_json: bool) -> None:
    with spinner("loading SmolLM2 (half a minute the first time)"):
        from .. import smollm2
        from ..smollm2.demo import SENTENCES, patch_fact, read_sentences

        target, nla = smollm2.load()
    with spinner("explaining"):
        read = read_sentences(target, nla, count)
        patched = patch_fact(target, nla)
        reading = None if page is None else nla.read(target, SENTENCES[0])
    failed = _write(reading, page)
    if as_json:
        print_json({"sentences": list(map(asdict, read)), "patch": patched.rows()})
        return
    for each in read:
        out.print(tables.checked_table(each))
        out.print()
    out.print(tables.sweep_table(patched, everything=everything))
    out.print()
    if everything:
        out.print(
            "A program wrote the labels that the verbalizer was trained on. The same program "
            "checks the lines against the text and the target's own next tokens, but not whether "
            "the subject fits. For measurements with controls, see nnsight_nla.smollm2.figures()",
            highlight=False,
        )
    else:
        out.print("For more detail: nnsight-nla demo --model smollm2 --all")
    _say(page, failed)


def _write(reading: Reading | None, page: Path | None) -> str | None:
    """Write the page; if the user did not ask for it, return why it could not be written."""
    if reading is None or page is None:
        return None
    if page == PAGE:
        return try_to_write(reading, page)
    reading.to_html(page)
    return None


def _say(page: Path | None, failed: str | None) -> None:
    """Say where the page is."""
    if failed is None:
        out.print(Text(f"The first sentence as an HTML page: {page}"), soft_wrap=True)
    else:
        out.print(Text(f"No page was written: {failed} Choose another file: --html FILE"))
