"""``nnsight-nla info``: show the settings of a checkpoint, and where each was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from rich.padding import Padding
from rich.text import Text
from typer import Argument

from . import options
from .app import command, out, print_json
from .tables import new_table

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint


_LONG = ("template", "ar_template")
"""The fields that need the width of the terminal."""


@command()
def info(
    checkpoint: Annotated[
        str, Argument(metavar="CHECKPOINT", help="A folder, a sidecar file or a Hub id.")
    ],
    as_json: options.AsJson = False,
) -> None:
    """Show the layer, prompt, marker and other settings of a checkpoint, and their sources."""
    from ..checkpoint.checkpoint import Checkpoint

    found = Checkpoint.load(checkpoint)
    fields = {name: value for name, value in asdict(found).items() if name != "source"}
    if as_json:
        print_json({**fields, "source": dict(found.source)})
        return
    print_settings(checkpoint, found)


def print_settings(name: str, found: Checkpoint) -> None:
    """Print a table, wrapped to the terminal; below it the long texts and each source file."""
    shown = {field: _shown(field, value) for field, value in vars(found).items()}
    del shown["source"]
    places = _places(found.source)
    files = list(dict.fromkeys(file for _, file in places.values()))
    named = len(files) > 1 or any(key for key, _ in places.values())
    table = new_table("field", "value", *(["found at"] if named else []))
    table.expand, table.columns[1].ratio = True, 1
    for field, value in shown.items():
        if value is not None:
            key, file = places.get(field, ("", ""))
            number = f"[{files.index(file) + 1}]" if file and len(files) > 1 else ""
            at = [Text(f"{key} {number}".strip(), "dim")] if named else []
            table.add_row(field, "see below" if field in _LONG else Text(value), *at)
    out.print(Text(name, "bold"), soft_wrap=True)
    out.print(table)
    for field in _LONG:
        value = shown[field]
        if value is not None:
            out.print(Text(f"{field}:", "bold"))
            out.print(Padding(Text(value), (0, 0, 0, 2)))
    absent = [field for field, value in shown.items() if value is None]
    if absent:
        out.print(Text(f"not given: {', '.join(absent)}", "dim"))
    for number, file in enumerate(files, start=1):
        start = f"[{number}]" if len(files) > 1 else "found in"
        out.print(Text(f"{start} {file}", "dim"), soft_wrap=True)


def _places(source: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Split each place into the key and the file (or preset) that it is in."""
    found: dict[str, tuple[str, str]] = {}
    for field, place in source.items():
        key, separator, file = place.partition(" in ")
        found[field] = (key, file) if separator else ("", place)
    return found


def _shown(field: str, value: Any) -> str | None:
    """Return a value in few words; ``None`` if there is none."""
    if value is None:
        return None
    if field == "injection":
        scale = "" if value.scale is None else f", scale {value.scale:g}"
        layer = "" if value.layer is None else f" {value.layer}"
        return f"{value.operation} at {value.site}{layer}{scale}"
    if field == "calibration":
        rates = [
            f"{each.name} {each.rate:z.2f}" for each in value.statements if each.rate is not None
        ]
        right = f"; right: {', '.join(rates)}" if rates else ""
        return f"{value.n:,} vectors: {value.population}{right}"
    return str(value)
