"""Write the pages and tables that are made from the package: a Sphinx extension.

Everything lands in ``tutorials/generated/``, which git ignores: a page for each command of
``nnsight-nla``, from Typer, the tables of the figures that ship with the package, that of the
published checkpoints, and the folders of the package.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer.main import get_group

import nnsight_nla
from nnsight_nla import tiny
from nnsight_nla.cli import app as application
from tutorials.recipes import published
from tutorials.recipes.tiny import oracle_figures, tables

if TYPE_CHECKING:
    from sphinx.application import Sphinx

FOLDER = Path(__file__).parents[1] / "generated"
PROGRAM = "nnsight-nla"


def setup(app: Sphinx) -> dict[str, bool]:
    """Write everything before Sphinx looks for its sources; Sphinx calls this."""
    write()
    app.add_config_value("generated_folder", str(FOLDER), "env")
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def write() -> None:
    """Write the pages; a file that would not change keeps its time, and Sphinx its page."""
    wanted = dict(pages())
    for path in FOLDER.rglob("*"):
        if path.is_file() and path.relative_to(FOLDER).as_posix() not in wanted:
            path.unlink()
    for name, text in wanted.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")


def pages() -> Iterator[tuple[str, str]]:
    """Yield the name of each generated file, and its text."""
    yield "tiny.md", f"{tables.markdown(tiny.figures())}\n\n{_oracle()}\n"
    yield "published.md", f"{published.table()}\n"
    yield "layout.md", layout()
    group: Any = get_group(application)
    context = group.make_context(PROGRAM, [], resilient_parsing=True)
    yield "commands/index.rst", _index(group, context)
    for name, command in group.commands.items():
        yield f"commands/{_file(name)}.rst", _page(f"{PROGRAM} {name}", command, context)


def _oracle() -> str:
    """Return the table of the tiny oracle, with a sentence on what was measured."""
    file = Path(tiny.__file__).parent / "oracle_figures.json"
    figures = json.loads(file.read_text("utf-8"))
    return (
        f"The oracle: the share of {figures['questions']} held-out questions that it answers "
        "exactly right about the vectors, with no vectors written, with random ones and with those "
        "of another row.\n\n" + oracle_figures.table(figures)
    )


def layout() -> str:
    """Return the folders and modules of the package with what they say of themselves."""
    package = Path(nnsight_nla.__file__).parent
    folders = {f"{each.parent.name}/": each for each in sorted(package.glob("*/__init__.py"))}
    modules = {each.name: each for each in sorted(package.glob("*.py")) if each.name[:2] != "__"}
    lines = []
    for name, path in {**folders, **modules}.items():
        said = ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
        first = " ".join(said.split("\n\n")[0].split()).replace("::", ":")
        lines.append(f"| `{name}` | {first.replace('``', '`').replace('|', chr(92) + '|')} |")
    return "\n".join(["| | |", "| --- | --- |", *lines, ""])


def _index(group: Any, context: Any) -> str:
    listed = "\n".join(
        f"   * - :doc:`{PROGRAM} {name} <{_file(name)}>`\n     - {_inline(_summary(command))}"
        for name, command in group.commands.items()
    )
    return "\n".join(
        [
            _title("Commands"),
            _text(group.help or ""),
            "``--help`` prints the same text as a command's page. With ``--json``, a command "
            "prints one JSON document, and nothing else, to standard output.\n",
            ".. list-table::\n   :widths: 30 70\n",
            f"{listed}\n",
            "Exit codes: 0 for success; 1 if an input cannot be used (the message says what to "
            "type); 2 for a wrong command line; 130 for an interruption.\n",
            ".. toctree::\n   :hidden:\n",
            *(f"   {_file(name)}" for name in group.commands),
            "",
            "Global options\n--------------\n",
            f".. program:: {PROGRAM}\n",
            *(_parameter(each, context) for each in _shown(group)),
        ]
    )


def _file(name: str) -> str:
    """Return the name of a command's page; a command may have two words."""
    return name.replace(" ", "_")


def _page(name: str, command: Any, parent: Any) -> str:
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    usage = " ".join(piece.strip("{}") for piece in command.collect_usage_pieces(context))
    parts = [
        _title(name),
        _text(command.help or ""),
        f".. code-block:: text\n\n   {name} {usage}\n",
        f".. program:: {name}\n",
    ]
    for title, kind in (("Arguments", "argument"), ("Options", "option")):
        those = [each for each in _shown(command) if each.param_type_name == kind]
        if those:
            parts += [f"{title}\n{'-' * len(title)}\n"]
            parts += [_parameter(each, context) for each in those]
    return "\n".join([*parts, _text(command.epilog or "")])


def _shown(command: Any) -> list[Any]:
    return [
        each
        for each in command.params
        if "--help" not in each.opts and not getattr(each, "hidden", False)
    ]


def _parameter(parameter: Any, context: Any) -> str:
    """Return an option or an argument: its flags, what it takes, what it does, its default."""
    signature, said = parameter.get_help_record(context)
    signature = signature.replace(" / ", ", ")
    said = re.sub(r"\s*\[([^\[\]]*)\]$", r" (\1)", said.strip())
    return f".. option:: {signature}\n\n   {_inline(said)}\n"


def _summary(command: Any) -> str:
    return inspect.cleandoc(command.help or "").split("\n\n", 1)[0]


def _title(text: str) -> str:
    return f"{text}\n{'=' * len(text)}\n"


def _text(help_text: str) -> str:
    """Return a help text as reST: paragraphs, and examples as they stand."""
    parts = []
    for part in filter(None, re.split(r"\n\s*\n", inspect.cleandoc(help_text))):
        lines = part.removeprefix("\b").strip("\n").splitlines()
        if part.startswith("\b") or all(line.startswith("  ") for line in lines):
            shown = inspect.cleandoc("\n".join(lines)).splitlines()
            parts.append("\n".join([".. code-block:: text", "", *(f"   {line}" for line in shown)]))
        else:
            parts.append(_inline(part))
    return "\n\n".join(parts) + "\n"


def _inline(text: str) -> str:
    """Return plain text on one line, with flags as code and nothing else as markup."""
    text = re.sub(r"([\\*`|])", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
    return re.sub(r"(?<![\w-])(--[a-z][\w-]*)", r"``\1``", text)
