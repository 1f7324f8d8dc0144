"""What the README says is true: its commands, figures, file tree and runnable examples."""

import re
from pathlib import Path

import pytest

from nnsight_nla import tiny
from tutorials.recipes.tiny.tables import markdown

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


def test_the_figures_are_those_of_the_shipped_pair():
    shown = README.split("<!-- figures -->")[1].split("<!-- /figures -->")[0]
    assert shown.strip() == markdown(tiny.figures()).strip()


def test_each_command_is_one_line_that_ends_as_promised():
    commands = re.findall(r"^python3 .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& nnsight-nla demo")
    assert commands[1].endswith("&& pytest")


def test_the_file_tree_is_the_packages():
    tree = README.split("nnsight_nla/\n", 1)[1].split("```", 1)[0]
    named = set(re.findall(r"^  (\w+(?:\.py|/))", tree, flags=re.MULTILINE))
    package = ROOT / "nnsight_nla"
    there = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert named == there


EXAMPLES = [
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "tiny.load()" in block
]


@pytest.mark.parametrize("block", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_embedded_examples_print_what_they_say(block, capsys, tmp_path):
    expected = "\n".join(re.findall(r"^# (.*)$", block, flags=re.MULTILINE))
    # nnsight reads a block's source back, so the example is run from a file.
    script = tmp_path / "example.py"
    script.write_text(block, "utf-8")
    exec(compile(block, str(script), "exec"), {})
    assert capsys.readouterr().out.strip() == expected


def test_all_examples_are_run():
    assert len(EXAMPLES) == 4
