"""The help of a command: typer's output, followed by examples.

A module makes its command with `command` in place of typer's decorator::

    @command()
    def explain(...): ...
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

from .examples import ALL, EXAMPLES

if TYPE_CHECKING:
    from .examples import Example


class _Help:
    """What both classes below add to typer's."""

    _in_help = False
    name: str | None

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters; in the help, as it shows them."""
        found: list[Any] = super().get_params(ctx)  # pyright: ignore[reportAttributeAccessIssue]
        return list(map(_as_shown, found)) if self._in_help else found

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        self._in_help = True
        try:
            super().format_help(ctx, formatter)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self._in_help = False
        _write(EXAMPLES.get(self.name or "", ALL), formatter)


class CommandWithExamples(_Help, TyperCommand):
    """A command whose help ends with its examples."""


class GroupWithExamples(_Help, TyperGroup):
    """The application, whose help ends with a few examples; a command may have two words."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Find a command of two words before one of the first alone."""
        two = " ".join(args[:2])
        if two in self.commands:
            return two, self.commands[two], args[2:]
        return super().resolve_command(ctx, args)


def paragraphs(docstring: str) -> str:
    """Return a docstring with one line per paragraph, for typer to wrap."""
    blocks = inspect.cleandoc(docstring).split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def _as_shown(param: Any) -> Any:
    """Return a copy of a parameter for the help.

    A flag has no type, and shares one column with the flag that turns it off; in two columns, the
    longest names are cropped at 80 characters.
    """
    if not getattr(param, "is_flag", False):
        return param
    shown = copy.copy(param)
    shown.metavar = ""
    if param.secondary_opts:
        shown.opts, shown.secondary_opts = [f"{param.opts[0]}/{param.secondary_opts[0]}"], []
        chosen = {True: param.opts, False: param.secondary_opts}.get(param.default)
        shown.show_default = False if chosen is None else chosen[0]
    return shown


def _write(examples: Sequence[Example], formatter: Any) -> None:
    """Write examples to where the rest of the help goes: the terminal, or typer's formatter."""
    lines = ["Examples:"]
    for example in examples:
        lines += ["", f"  # {example.what}", *(f"  {line}" for line in example.lines)]
    if formatter.getvalue():  # Without rich, typer collects the help and prints it later.
        formatter.write("\n" + "\n".join(lines) + "\n")
        return
    shown = Text()
    for line in lines:
        comment = line.startswith("  #")
        style = "dim" if comment else "bold" if not line.startswith(" ") else ""
        shown.append(f" {line}".rstrip() + "\n", style=style)
    Console().print(shown, soft_wrap=True, highlight=False, end="")
