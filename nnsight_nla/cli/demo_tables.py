"""Format what `demo` prints: sentences with the truth, and patches."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.text import Text

from .tables import new_table, one_line

if TYPE_CHECKING:
    from ..experiments import Sweep
    from ..smollm2.demo import Read as CheckedRead
    from ..tiny.demo import Patched, Read

_SLOTS = 6


def sentence_table(rows: list[Read], *, everything: bool = False) -> RenderableType:
    """Format a sentence of tiny.

    Args:
        rows: Its tokens.
        everything: Show each token with its full explanation; otherwise show only the lines that
            differ from the previous explanation, without the last line (the current and the next
            token), which always changes.
    """
    return _whole(rows) if everything else _changes(rows)


def _whole(rows: list[Read]) -> RenderableType:
    table = new_table("token", "next", "explanation of the residual", "truth", "right")
    for row in rows:
        style = "green" if row.slots_right == _SLOTS else "yellow"
        said, true = row.explanation.splitlines(), row.truth.splitlines()
        differs = [line for line in true if line not in said]
        truth = Text(" / ".join(differs) or "the same", style)
        right = Text(f"{row.slots_right}/{_SLOTS}", style)
        table.add_row(row.token, row.expected, one_line(row.explanation), truth, right)
    return Group(_title(rows), table)


def _changes(rows: list[Read]) -> RenderableType:
    table = new_table("after", "what changes in the explanation of the residual", "truth")
    before: list[str] = []
    wrong: dict[str, str] = {}
    for row in rows:
        said = row.explanation.splitlines()[:-1]
        false = {slot: true for slot, true in row.wrong.items() if slot not in ("current", "next")}
        changed = [line for line in said if line not in before]
        if changed or false != wrong:
            truth = ", ".join(f"{slot}: {true}" for slot, true in false.items())
            shown = Text(truth or "the same", "yellow" if truth else "green")
            table.add_row(row.token, Text(" / ".join(changed or said)), shown)
        before, wrong = said, false
    return Group(_title(rows), table)


def _title(rows: list[Read]) -> Text:
    from ..tiny.documents import join

    return Text(join(row.token for row in rows), "bold")


def patch_table(patched: Patched) -> RenderableType:
    """Format what one patched residual did to the target and to the explanation."""
    table = new_table("", "next word", "explanation of the last token's residual")
    where = f"Patched at {patched.where}"
    for name, word, text in zip(
        ("before", "after"), patched.predicted, patched.explanation, strict=True
    ):
        table.add_row(name, word, one_line(text))
    return Group(Text(f"{patched.prompt} ...", "bold"), where, table)


def checked_table(row: CheckedRead) -> RenderableType:
    """Format a sentence that SmolLM2 read: each line of its explanation, and if it is right."""
    table = new_table("explanation of the last residual", "checked against the sentence")
    verdicts = {
        "Mentions": ("content", "not in the sentence"),
        "Last": ("last", "not its last words"),
        "Next": ("next", f"the target expects {' | '.join(row.expected)}"),
    }
    for line in row.explanation.splitlines():
        slot, otherwise = verdicts.get(line.partition(":")[0], ("", "not checked"))
        holds = row.right.get(slot)
        verdict = Text("right", "green") if holds else Text(otherwise, "yellow" if slot else "dim")
        table.add_row(Text(line), verdict)
    return Group(Text(row.text, "bold"), table)


def sweep_table(sweep: Sweep, *, everything: bool = False) -> RenderableType:
    """Format a patch of one cell: the answers, and the explanations of the last residual.

    Args:
        sweep: A sweep with one row.
        everything: Show each line of an explanation on its own line.
    """
    (row,) = sweep.rows()
    prompts = {name: "".join(tokens) for name, tokens in sweep.header.tokens.items()}
    table = new_table("", "next word", "explanation of the last token's residual")
    title = Text(f"1  {prompts['clean']}\n2  {prompts['corrupt']}", "bold")
    patched = (
        f"3  prompt 2, with the residual of token {row['position']} after block {row['layer']} "
        "from prompt 1"
    )
    for name, answer, text in (
        ("1", sweep.runs["clean"].answer, row["clean"]),
        ("2", sweep.runs["corrupt"].answer, row["before"]),
        ("3", row["answer"], row["after"]),
    ):
        said = Text(str(text)) if everything else one_line(str(text))
        table.add_row(name, Text(str(answer).strip()), said)
    return Group(title, patched, table)
