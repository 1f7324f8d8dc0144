"""Format what `demo`, `explain` and `read` print as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from ..core.baseline import Baseline

if TYPE_CHECKING:
    from ..experiments import Sweep
    from ..explanation.handle import Explanation
    from ..reading.records import Reading
    from ..smollm2.demo import Read as CheckedRead
    from ..tiny.demo import Patched, Read

_GRADES = {"strong": "green", "partial": "yellow", "weak": "red", "none": "red"}


def sentence_table(rows: list[Read]) -> Table:
    """Format a sentence, one row per token: its explanation next to the truth."""
    table = Table(title=" ".join(row.token for row in rows), title_justify="left", pad_edge=False)
    for name in ("token", "expects", "explanation of the residual", "truth", "right"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = "green" if row.slots_right == 6 else "yellow" if row.slots_right >= 4 else "red"
        right = Text(f"{row.slots_right}/6", style=style)
        said, true = row.explanation.splitlines(), row.truth.splitlines()
        differs = [line for line in true if line not in said]
        truth = Text("\n".join(differs), style=style) if differs else Text("the same", "green")
        table.add_row(row.token, row.expected, _one_line(row.explanation), truth, right)
    return table


def checked_table(rows: list[CheckedRead]) -> Table:
    """Format sentences that were read at their last token: what was said, and which lines hold."""
    table = Table("text", "explanation of its last residual", "target's next tokens", "right")
    for row in rows:
        right = ", ".join(line for line, holds in row.right.items() if holds) or "nothing"
        style = "green" if all(row.right.values()) else "yellow"
        expected = " | ".join(row.expected)
        table.add_row(Text(row.text), Text(row.explanation), Text(expected), Text(right, style))
    return table


def patch_table(patched: Patched) -> Table:
    """Format what one patched residual did to the target and to the explanation."""
    table = Table(
        "",
        "target's next word",
        "explanation at the last token",
        title=f"{patched.prompt} …   patched at {patched.where}",
        title_justify="left",
    )
    for name, word, text in zip(
        ("before", "after"), patched.predicted, patched.explanation, strict=True
    ):
        table.add_row(name, word, _one_line(text))
    return table


def sweep_table(sweep: Sweep) -> Table:
    """Format a patch of one cell: the answers, and what the last residual is said to hold."""
    (row,) = sweep.rows()
    prompts = {name: "".join(tokens) for name, tokens in sweep.header.tokens.items()}
    table = Table("run", "target's next token", "explanation of its last residual")
    place = f"{prompts['corrupt']}, patched at block {row['layer']}, position {row['position']}"
    for name, answer, text in (
        (prompts["clean"], sweep.runs["clean"].answer, row["clean"]),
        (prompts["corrupt"], sweep.runs["corrupt"].answer, row["before"]),
        (place, row["answer"], row["after"]),
    ):
        table.add_row(Text(name), Text(repr(answer)), Text(str(text)))
    return table


def explanation_table(thoughts: Explanation) -> Table:
    """Format the explanations of a few vectors, with their trust labels if there are any."""
    records = thoughts.to_dict()["explanations"]
    labels = [record["label"] for record in records]
    columns = ["position", "token", "explanation", *(["trust"] if any(labels) else []), "notes"]
    over = [Baseline(**label["baseline"]) for label in labels if label and label["baseline"]]
    caption = Text(f"FVE ({over[0].in_words()})") if over else None
    table = Table(*columns, caption=caption, caption_justify="left")
    for record, label in zip(records, labels, strict=True):
        table.add_row(
            str(record["position"]),
            Text(repr(record["token"])),
            Text(record["text"] or f"no text: this vector {record['error']}"),
            *([_label(label)] if label else []),
            Text("\n".join(record["warnings"])),
        )
    return table


def _label(label: dict[str, Any]) -> Text:
    """Format a trust label, one figure per line, in the colour of its grade."""
    line, *rest = label["lines"]
    grade, _, figures = line.removeprefix("reconstruction: ").partition(" ")
    shown = Text("reconstruction: ").append(grade, style=_GRADES[label["grade"]])
    lines = [*figures[1:-1].split("; "), *rest]
    return shown.append("\n" + "\n".join(lines), style="default")


def reading_table(reading: Reading) -> Table:
    """Format a reading, one row per token."""
    scored = any(record.grade for record in reading)
    table = Table("position", "token", "explanation", *(["reconstruction"] if scored else []))
    for record in reading:
        if record.read:
            said = record.explanation or f"no text: this vector {record.error}"
            trust = [Text(_trust(record.grade, record.reconstruction_cosine))] if scored else []
            token = Text(repr(record.token))
            table.add_row(str(record.position), token, _one_line(said), *trust)
    return table


def _trust(grade: str | None, cosine: float | None) -> str:
    return (grade or "") if cosine is None else f"{grade} {cosine:.2f}"


def _one_line(text: str) -> Text:
    return Text(" / ".join(text.splitlines()))
