"""The help of every command: whole at 80 columns, in one style, with examples that work."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

from nnsight_nla.cli import app
from nnsight_nla.cli.examples import ALL, EXAMPLES

README = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
GROUP = get_group(app)
VALUES = {
    "AR", "AV", "CHAR", "DATE", "DTYPE", "FIGURE", "FILE", "FOLDER", "I/N", "MAP", "MODEL",
    "MODULE:FUNCTION|FILE", "N", "NAME", "NAME=X,...", "ROWS", "TEXT", "URL|MODEL", "WHICH",
    "URL", "WORDS", "X", "line|N",
    "CHECKPOINT", "INPUT", "OUTPUT", "SHARDS...", "av|ar", "FIGURE>X", "FUNCTION=X", "OPTIONS...",
}  # fmt: skip
"""What a value may be called."""
CHOICES = {"model", "edited"}
"""Options that have a few values, which typer lists."""


def parse(line: str) -> None:
    """Parse a command line; raise if it has an option that there is not, or lacks an argument."""
    program, *words = shlex.split(line.replace("\\\n", " "), comments=True)
    assert program == "nnsight-nla"
    assert "--help" in words or GROUP.resolve_command(None, words)[1].make_context(
        "name", GROUP.resolve_command(None, words)[2]
    )


@pytest.fixture(autouse=True)
def terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


@pytest.mark.parametrize("command", ["", *GROUP.commands])
def test_help_is_whole_at_80_columns_and_ends_with_examples(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in done.stdout
    examples = lines[lines.index(" Examples:") :]
    for example in EXAMPLES[command] if command else ALL:
        assert f"   # {example.what}" in examples
        assert all(f"   {line}" in examples for line in example.lines)


@pytest.mark.parametrize("command", GROUP.commands)
def test_help_without_rich_has_the_examples_too(command, monkeypatch):
    monkeypatch.setattr("typer.core.HAS_RICH", False)
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    first = EXAMPLES[command][0]
    assert done.stdout.index("Examples:") < done.stdout.index(first.lines[0])
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("command", GROUP.commands)
def test_help_explains_every_argument_and_option_in_one_style(command):
    assert EXAMPLES.keys() == GROUP.commands.keys()
    for parameter in GROUP.commands[command].params:
        said = parameter.help
        assert said, parameter.name
        assert said[0].isupper() or said.startswith("module"), said
        assert said.endswith((".", "...")), said
        if not getattr(parameter, "is_flag", False) and parameter.name not in CHOICES:
            assert parameter.metavar in VALUES, parameter.name


@pytest.mark.parametrize(
    "example",
    [*ALL, *(each for found in EXAMPLES.values() for each in found)],
    ids=lambda e: e.what,
)
def test_every_example_is_a_command_line(example):
    parse(example.command)


def test_every_command_line_in_the_readme_is_one():
    code = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = re.findall(r"nnsight-nla (?:.*\\\n)*.*", "\n".join(code))
    assert len(lines) >= 2
    for line in lines:
        parse(line)
