"""What the README says is true: its commands, its blocks in their order, its links and pictures."""

import re
import warnings
from pathlib import Path

import nnsight

import nnsight_nla
from nnsight_nla import smollm2
from tests.helpers.stand_ins import stand_in
from tutorials.site import readme

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LINKS = re.findall(r"\]\(([^)\s]+)\)", README)


def test_it_is_read_in_a_few_minutes():
    assert len(README.split()) <= 1200


def test_each_command_is_one_line_that_ends_as_promised():
    commands = re.findall(r"^python3 .*$", README, flags=re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("&& nnsight-nla demo")
    assert commands[1].endswith("&& pytest")


def test_what_is_made_is_as_its_command_makes_it():
    assert readme.made(README) == README


def test_what_it_says_of_truth_was_measured():
    areas = smollm2.figures()["truth"]["predictors"]
    label, calibrated = areas["margin over controls"], areas["calibrated probability"]
    assert f"(AUC {label['subject']:.2f})" in README
    assert f"does ({calibrated['subject']:.2f})" in README


def test_links_and_pictures_work_anywhere_and_lead_to_files_that_exist():
    assert len(LINKS) > 30
    for link in LINKS:
        assert link.startswith("https://"), link
        for place in (readme.HOST, readme.RAW):
            if link.startswith(place):
                assert (ROOT / link.removeprefix(f"{place}/")).is_file(), link


def test_the_pictures_are_small_enough_for_a_first_page():
    pictures = [ROOT / link.removeprefix(f"{readme.RAW}/") for link in LINKS if readme.RAW in link]
    assert len(pictures) > 10
    assert sum(path.stat().st_size for path in pictures) < 4_000_000
    assert all(path.stat().st_size < 2_000_000 for path in pictures)


def test_every_block_prints_what_it_says_in_the_order_of_the_page(monkeypatch, tmp_path, capsys):
    """In one namespace, as a reader types them; the 8B models are the embedded pair here."""
    tiny_target, tiny_nla = nnsight.TransformersModel, nnsight_nla.NLA
    monkeypatch.chdir(tmp_path)
    scope, printed = {}, 0
    for number, block in enumerate(BLOCKS):
        if "Qwen" in block:
            stand_in(monkeypatch)
        # nnsight reads a block's source back, so it is run from a file.
        script = tmp_path / f"block_{number}.py"
        script.write_text(block.replace(", remote=True):", "):"), "utf-8")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The verbalizer was trained on")
            exec(compile(script.read_text("utf-8"), str(script), "exec"), scope)
        monkeypatch.setattr(nnsight, "TransformersModel", tiny_target)
        monkeypatch.setattr(nnsight_nla, "NLA", tiny_nla)
        said = capsys.readouterr().out.strip()
        expected = "\n".join(re.findall(r"^# (.*)$", block, flags=re.MULTILINE))
        if expected or "qwen" not in block:
            assert said == expected, block
            printed += bool(expected)
    assert printed >= 4
    assert "<title>" in (tmp_path / "paris.html").read_text("utf-8")
