"""How far a run is, with its rate and the time left; silent where nobody watches."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Generator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class Bar:
    """A running count of input rows, and of the output rows they gave."""

    def __init__(self, progress: Progress, task: Any) -> None:
        """Made by `bar`."""
        self._progress, self._task = progress, task
        self._rows = 0

    def advance(self, inputs: int, rows: int) -> None:
        """Count finished rows."""
        self._rows += rows
        self._progress.update(self._task, advance=inputs, rows=self._rows, note="")

    def say(self, note: str) -> None:
        """Show a note until the next advance."""
        self._progress.update(self._task, note=note)


@contextlib.contextmanager
def bar(what: str, total: int | None, *, shown: bool) -> Generator[Bar, None, None]:
    """A bar on standard error, where it is a terminal and `shown`.

    The queue's own bar, of a single batch of texts, is silent meanwhile.
    """
    console = Console(file=sys.stderr)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(), TextColumn("[yellow]{task.fields[note]}"),
    )  # fmt: skip
    watched = shown and console.is_terminal
    progress = Progress(
        *columns, console=console, disable=not watched, redirect_stderr=False,
        speed_estimate_period=600,
    )  # fmt: skip
    with progress, contextlib.redirect_stderr(_Unwatched(sys.stderr)):
        yield Bar(progress, progress.add_task(what, total=total, rows=0, note=""))


class _Rate(ProgressColumn):
    """Output rows per second since the beginning."""

    def render(self, task: Task) -> Text:
        seconds = task.elapsed or 0.0
        rate = task.fields["rows"] / seconds if seconds else 0.0
        return Text(f"{rate:.1f} rows/s")


class _Unwatched(io.TextIOBase):
    """A stream that passes on what is written and says that nobody watches."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return False
