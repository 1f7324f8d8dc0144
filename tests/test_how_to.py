"""The how-to guides and the first page: their blocks run, in order, and print what they say."""

import re
import warnings
from pathlib import Path

import nnsight
import pytest

from tests.helpers.stand_ins import stand_in

FOLDER = Path(__file__).parents[1] / "tutorials" / "how_to"
GUIDES = sorted(path.stem for path in FOLDER.glob("*.md") if path.stem != "index")
REMOTE = ("ndif",)
"""Guides that name models of the Hub and a host; they run against stand-ins."""


FIRST = "../getting_started"


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (FOLDER / f"{name}.md").read_text("utf-8"), re.DOTALL)


@pytest.fixture
def stand_ins(monkeypatch):
    """The embedded pair under every name of a model, and a host that answers."""
    stand_in(monkeypatch)
    monkeypatch.setattr(type(nnsight.CONFIG), "set_default_api_key", lambda self, key: None)


@pytest.mark.parametrize("name", [FIRST, *(name for name in GUIDES if name not in REMOTE)])
def test_its_blocks_print_what_they_say(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for number, block in enumerate(blocks(name)):
        # nnsight reads a block's source back, so it is run from a file.
        script = tmp_path / f"block_{number}.py"
        script.write_text(block, "utf-8")
        exec(compile(block, str(script), "exec"), scope)
        expected = re.findall(r"^# (.*)$", block, flags=re.MULTILINE)
        assert capsys.readouterr().out.splitlines() == expected


@pytest.mark.parametrize("name", REMOTE)
def test_its_blocks_run_against_stand_ins(name, stand_ins, tmp_path):
    scope = {}
    for number, block in enumerate(blocks(name)):
        script = tmp_path / f"block_{number}.py"
        script.write_text(block.replace(", remote=True):", "):"), "utf-8")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The verbalizer was trained on")
            exec(compile(script.read_text("utf-8"), str(script), "exec"), scope)


def test_each_guide_is_in_the_index_and_half_a_page():
    index = (FOLDER / "index.md").read_text("utf-8")
    listed = index.split(":maxdepth: 1\n")[1].split("```")[0].split()
    assert sorted(listed) == GUIDES
    for name in GUIDES:
        assert len((FOLDER / f"{name}.md").read_text("utf-8").splitlines()) <= 80, name


def test_links_between_the_guides_and_tutorials_lead_somewhere():
    for name in (*GUIDES, "index", FIRST):
        text = (FOLDER / f"{name}.md").read_text("utf-8")
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            made = "generated/" in target  # by the site's build
            here = (FOLDER / f"{name}.md").parent / target
            assert made or target.startswith("https://") or here.exists(), target
