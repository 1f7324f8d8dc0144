"""Format what `explain`, `read` and `ask` print as tables for a terminal.

Texts get most of the width: a trust label is below its text, and each warning is printed once,
below the table, with the positions that it is about.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ..core.answer_trust import NAMES
from ..core.baseline import Baseline

if TYPE_CHECKING:
    from ..explanation.handle import Explanation
    from ..reading.records import Reading

_GRADES = {"strong": "green", "partial": "yellow", "weak": "red", "none": "red"}


def new_table(*columns: str, title: str | None = None, caption: str | None = None) -> Table:
    """Return an empty table without lines.

    Args:
        columns: The headings.
        title: What stands above it.
        caption: What stands below it.
    """
    table = Table(
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        header_style="bold underline",
        title=title,
        title_justify="left",
        title_style="",
        caption=caption,
        caption_justify="left",
    )
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def explanation_table(thoughts: Explanation) -> RenderableType:
    """Format the explanations of a few vectors, with their trust labels if there are any."""
    records = thoughts.to_dict()["explanations"]
    notes = _Notes()
    table = new_table("position", "token", "explanation")
    over: list[Baseline] = []
    for _, group in groupby(records, key=lambda record: record["index"]):
        if over or table.row_count:
            table.add_row()
        samples = list(group)
        first, label = samples[0], samples[0]["label"]
        numbers = notes.add(first["position"], (w for each in samples for w in each["warnings"]))
        below = _label(label, notes) if label else []
        if label and label["baseline"]:
            over.append(Baseline(**label["baseline"]))
        if numbers and not (label and label["reason"] in notes.positions and len(numbers) == 1):
            below.append(Text(notes.named(numbers), "dim"))
        said = Group(*_samples(samples), *(Padding(line, (0, 0, 0, 2)) for line in below))
        table.add_row(str(first["position"]), Text(repr(first["token"])), said)
    caption = f"FVE ({over[0].in_words()})" if over else None
    return _with_notes(table, notes, caption)


def reading_table(reading: Reading) -> RenderableType:
    """Format a reading, one row per token."""
    scored = any(record.grade for record in reading)
    notes = _Notes()
    table = new_table("position", "token", "explanation", *(["reconstruction"] if scored else []))
    for record in reading:
        if record.read:
            numbers = notes.add(record.position, record.warnings)
            said = one_line(record.explanation or f"no text: this vector {record.error}")
            if numbers:
                said.append(f" ({notes.named(numbers)})", style="dim")
            trust = [_trust(record.grade, record.reconstruction_cosine)] if scored else []
            table.add_row(str(record.position), Text(repr(record.token)), said, *trust)
    caption = "reconstruction: trust grade and cosine" if scored else None
    return _with_notes(table, notes, caption)


def answer_table(answers: Explanation) -> RenderableType:
    """Format the answers of an oracle, one table per question, next to those of the controls."""
    records = answers.to_dict()["explanations"]
    notes = _Notes()
    parts: list[RenderableType] = []
    for question, group in groupby(records, key=lambda record: record["question"]):
        rows = list(group)
        labels = [record["label"] for record in rows]
        controls = [name for name in NAMES if any(label.get(name) for label in labels)]
        headings = ["answer", "mass"] if "mass" in rows[0] else ["answer"]
        headings += [NAMES[name] for name in controls]
        table = new_table("position", "token", *headings, title=f"[bold]{escape(question)}[/bold]")
        for record, label in zip(rows, labels, strict=True):
            cells = _answer(record, notes)
            cells += [_control(label, name) for name in controls]
            table.add_row(str(record["position"]), Text(repr(record["token"])), *cells)
        parts += ["", table, Text(labels[-1]["line"], "dim")]
    caption = "mass: the choices' share of all next tokens" if "mass" in records[0] else None
    return _with_notes(Group(*parts[1:]), notes, caption)


def one_line(text: str) -> Text:
    """Return a text of several lines in one, with slashes between them."""
    return Text(" / ".join(text.splitlines()))


class _Notes:
    """Warnings, each once, and the positions that they are about."""

    def __init__(self) -> None:
        self.positions: dict[str, list[Any]] = {}

    def add(self, position: Any, warnings: Iterable[str]) -> list[int]:
        """Add the warnings of one position, and return their numbers."""
        given = list(dict.fromkeys(warnings))
        for warning in given:
            self.positions.setdefault(warning, []).append(position)
        return [self.number(warning) for warning in given]

    def number(self, warning: str) -> int:
        """Return the number of a warning that was added, from 1."""
        return list(self.positions).index(warning) + 1

    @staticmethod
    def named(numbers: Sequence[int]) -> str:
        """Return a reference to the notes of these numbers."""
        return f"note{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"

    def table(self) -> Table:
        """Return them as a table."""
        table = Table.grid(padding=(0, 2, 0, 0))
        for number, (warning, positions) in enumerate(self.positions.items(), start=1):
            where = f"position{'s' if len(positions) > 1 else ''} {_ranges(positions)}"
            shown = Text().append(warning, "yellow")
            if not warning.startswith(f"{where}:"):
                shown.append(f" ({where})", "dim")
            table.add_row(Text(f"note {number}", "dim"), shown)
        return table


def _with_notes(table: RenderableType, notes: _Notes, caption: str | None) -> RenderableType:
    below: list[RenderableType] = [notes.table()] if notes.positions else []
    below += [] if caption is None else [Text(caption, "dim")]
    return Group(table, "", *below) if below else table


def _answer(record: dict[str, Any], notes: _Notes) -> list[Text]:
    """Return the cells of an answer: its text, or the probabilities of the choices."""
    said = one_line(record["text"] or f"no text: {record['error']}")
    if record.get("probabilities"):
        said = Text(", ".join(f"{word} {p:z.2f}" for word, p in record["probabilities"].items()))
    numbers = notes.add(record["position"], record["warnings"])
    if numbers:
        said.append(f" ({notes.named(numbers)})", style="dim")
    return [said, Text(f"{record['mass']:z.2f}")] if "mass" in record else [said]


def _control(label: dict[str, Any], name: str) -> Text:
    """Return a control's answer, marked if it is the same."""
    return Text(label.get(name) or "", "yellow" if name in label.get("unchanged", ()) else "dim")


def _samples(records: Sequence[dict[str, Any]]) -> list[RenderableType]:
    """Return the texts of one vector; if there are several, with their numbers, from 0."""
    texts = [record["text"] or f"no text: this vector {record['error']}" for record in records]
    if len(texts) == 1:
        return [Text(texts[0])]
    table = Table.grid(padding=(0, 1, 0, 0))
    for number, text in enumerate(texts):
        table.add_row(f"{number}:", Text(text))
    return [table]


def _label(label: dict[str, Any], notes: _Notes) -> list[Text]:
    """Format the lines of a trust label; do not repeat what a note says."""
    found: list[Text] = []
    for line in label["lines"]:
        shown = Text(_shorter(line, label, notes), "dim")
        shown.highlight_regex(rf"^reconstruction: {label['grade']}\b", _GRADES[label["grade"]])
        found.append(shown)
    return found


def _shorter(line: str, label: dict[str, Any], notes: _Notes) -> str:
    reason, warnings = label["reason"], label["warnings"]
    if reason in notes.positions:
        line = line.replace(reason, f"see note {notes.number(reason)}")
    count = len(warnings)
    return line.replace(f"; {count} warning{'' if count == 1 else 's'})", ")") if count else line


def _trust(grade: str | None, cosine: float | None) -> Text:
    words = [*([grade] if grade else []), *([] if cosine is None else [f"{cosine:z.2f}"])]
    return Text(" ".join(words), _GRADES.get(grade or "", ""))


def _ranges(positions: Sequence[Any]) -> str:
    """Return positions in words, runs of them shortened.

    >>> _ranges([0, 1, 2, 5])
    '0 to 2, 5'
    """
    runs: list[list[Any]] = []
    for position in positions:
        if runs and isinstance(position, int) and position == runs[-1][-1] + 1:
            runs[-1].append(position)
        else:
            runs.append([position])
    return ", ".join(
        f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs
    )
