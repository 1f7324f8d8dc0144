"""What the README says is true: its commands, figures, file tree and runnable examples."""

import re
import warnings
from pathlib import Path

import pytest

from nnsight_nla import tiny
from nnsight_nla.smollm2 import target
from tests.helpers.stand_ins import stand_in
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


REAL = [
    block
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    if "smollm2.load()" in block
]


@pytest.mark.parametrize("block", EXAMPLES, ids=range(len(EXAMPLES)))
def test_the_embedded_examples_print_what_they_say(block, capsys, tmp_path):
    prints_what_it_says(block, capsys, tmp_path)


@pytest.mark.parametrize("block", REAL, ids=range(len(REAL)))
def test_the_real_examples_print_what_they_say(block, capsys, tmp_path):
    if target.wheel_file() is None:
        pytest.skip(f"needs SmolLM2: {target.INSTALL}")
    prints_what_it_says(block, capsys, tmp_path)


def prints_what_it_says(block, capsys, tmp_path):
    expected = "\n".join(re.findall(r"^# (.*)$", block, flags=re.MULTILINE))
    # nnsight reads a block's source back, so the example is run from a file.
    script = tmp_path / "example.py"
    script.write_text(block, "utf-8")
    exec(compile(block, str(script), "exec"), {})
    assert capsys.readouterr().out.strip() == expected


BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def stand_ins(monkeypatch):
    """The embedded pair under every name of a model, and a host that answers."""
    stand_in(monkeypatch)


def test_the_other_blocks_run_in_their_order(stand_ins, tmp_path, monkeypatch, capsys):
    """With what the blocks before it defined; remote requests run on this machine."""
    monkeypatch.chdir(tmp_path)
    scope = {}
    others = [block for block in BLOCKS if block not in (*EXAMPLES, *REAL)]
    assert len(others) == 5
    for number, block in enumerate(others):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block.replace(", remote=True):", "):"), "utf-8")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The verbalizer was trained on")
            exec(compile(script.read_text("utf-8"), str(script), "exec"), scope)
    assert "<title>" in (tmp_path / "paris.html").read_text("utf-8")


def test_all_examples_are_run():
    assert len(EXAMPLES) == 4
    assert len(REAL) == 1
