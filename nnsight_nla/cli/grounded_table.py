"""Format the figures of ``evaluate --grounded``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .tables import new_table

if TYPE_CHECKING:
    from rich.table import Table


_WHAT = {
    "mentions so far": "quotes, names, numbers: in the text so far",
    "mentions later": "... later in the document",
    "mentions nowhere": "... nowhere in it",
    "says next": "names a next token",
    "next": "... which the target finds likely",
}
_BY = {"cosine": "the reconstructor", "likelihood": "the verbalizer"}


def grounded_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table: a row per figure, a column per checkpoint."""
    columns = list(figures.values())
    rows, documents = columns[0]["rows"], columns[0]["documents"]
    table = new_table(
        "figure",
        *figures,
        title=f"Compared with the texts: {rows:,} rows of {documents:,} documents",
        caption="[low, high]: the 95% interval",
    )
    names = dict.fromkeys(name for each in columns for name in each["text"])
    for name in names:
        found = [each["text"].get(name) for each in columns]
        table.add_row(_WHAT.get(name, f"{name} is right"), *map(_shown, found))
        if name not in _WHAT or name == "next":
            others = [each["shuffled"].get(name) for each in columns]
            table.add_row("   for the text of another document", *map(_shown, others))
    for kind, what in (
        ("position", "which of five positions, by"), ("source", "which of four documents, by"),
    ):  # fmt: skip
        for way, who in _BY.items():
            found = [(each[kind] or {}).get(way) for each in columns]
            if any(found):
                table.add_row(f"{what} {who}", *map(_shown, found))
    _add_judged(table, [each["judge"] for each in columns])
    return table


def _add_judged(table: Table, judged: list[dict[str, Any] | None]) -> None:
    if not any(judged):
        return
    known = [each or {} for each in judged]
    for name, what in (
        ("position", "which of five positions, by the judge"),
        ("source", "which of four documents, by the judge"),
        ("specificity", "would not fit another document, by the judge"),
    ):
        table.add_row(what, *(_shown(each.get(name)) for each in known))
    for name, what in (
        ("precision", "claims that the text supports"),
        ("contradicted", "claims that it contradicts"),
        ("absent", "claims that it does not have"),
    ):
        table.add_row(what, *(_shown((each.get("claims") or {}).get(name)) for each in known))
    for name, what in (("claims", "claims per text"), ("fabricated", "... not supported")):
        values = [(each.get("claims") or {}).get(name) for each in known]
        table.add_row(what, *("" if value is None else f"{value:z.2f}" for value in values))


def _shown(share: Mapping[str, Any] | None) -> str:
    if not share or share.get("value") is None:
        return ""
    chance = "" if share.get("chance") is None else f", chance {share['chance']:z.2f}"
    return f"{share['value']:z.3f} \\[{share['low']:z.3f}, {share['high']:z.3f}]{chance}"
