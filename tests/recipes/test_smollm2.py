"""The recipe of SmolLM2's NLA: its sources, its labels, its tables, and what it ships."""

import json

import pytest

from nnsight_nla import smollm2
from nnsight_nla.smollm2.explanations import parse
from tutorials.recipes.smollm2 import corpus, evaluate, packaged_texts, ship
from tutorials.recipes.smollm2.labels import label
from tutorials.recipes.smollm2.sources import (
    FORMS,
    HELD_OUT_SUBJECTS,
    PACKAGES,
    SUBJECTS,
    is_held_out,
    subject_of,
)
from tutorials.recipes.smollm2.tables import page


def test_the_tables_of_the_docs_are_those_of_the_shipped_figures():
    assert evaluate.TABLES.read_text("utf-8") == page(smollm2.figures())


def test_sources_are_held_out_whole():
    assert len(set(SUBJECTS)) == len(SUBJECTS) > 300
    kept = [f"{form.name}/{subject}/0" for form in FORMS for subject in SUBJECTS]
    train = [name for name in kept if not is_held_out(name)]
    assert {name.split("/")[0] for name in train} == {f.name for f in FORMS if not f.held_out}
    assert {subject_of(name) for name in train} == set(SUBJECTS) - set(HELD_OUT_SUBJECTS)
    assert is_held_out("bible/Luke/3-end")
    assert not is_held_out("bible/John/3")
    assert subject_of("austen/emma/3-end") == PACKAGES["austen"].subject
    assert "/" not in "".join(SUBJECTS)


def test_a_label_is_what_the_text_and_the_model_say():
    row = {
        "doc_id": "letter/bees/0",
        "detokenized_text_truncated": "Dear Anna,\nI watched my bees collect nectar from the",
        "next_tokens": [" flowers", "\n", " |"],
    }
    said = parse(label(row))
    assert (said.subject, said.content) == ("bees", "nectar")
    assert (said.last, said.next) == (("the", "from", "nectar"), ("flowers", "(line)", "(bar)"))
    assert label({**row, "detokenized_text_truncated": "Dear Anna,"}) is None


@pytest.mark.parametrize(
    ("text", "usable"),
    [
        ("The bees fly. " + " ".join(f"word{chr(97 + i % 26)}{i} is new" for i in range(20)), True),
        ("The bees fly. " + "And so on and on. " * 20, False),  # It repeats itself.
        ("The wasps fly. " + " ".join(f"it{i} is new" for i in range(30)), False),  # Not of bees.
        ("The bees fly.", False),
        ("The bees fly caf\u00e9. " + " ".join(f"it{i} is new" for i in range(30)), False),
    ],
)
def test_which_written_passages_are_used(text, usable):
    assert corpus._is_usable("letter/bees/0", text) == usable


def test_passages_are_whole_sentences():
    text = " ".join(
        f"This is sentence number {i} of the story\u2019s \u201cpart\u201d." for i in range(60)
    )
    found = packaged_texts._cut(text)
    assert all(each.endswith(".") and "\u201c" not in each for each in found)
    assert all(
        packaged_texts.LENGTH <= len(each) < 2 * packaged_texts.LENGTH for each in found[:-1]
    )


def test_what_is_shipped_has_a_complete_card(tmp_path, monkeypatch):
    work = tmp_path / "work"
    for role, name in (("av", "verbalizer"), ("ar", "reconstructor")):
        folder = work / role
        folder.mkdir(parents=True)
        for file in (*ship.FILES, ship.HEAD):
            (folder / file).write_text("x", "utf-8")
        config = {"base_model_name_or_path": "/home/someone/base", "r": 8}
        (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
        (folder / "nla_meta.yaml").write_text("extraction:\n  base_model: /home/someone/base\n")
        shipped = smollm2.paths()[role] / "README.md"
        (folder / "README.md").write_text(shipped.read_text("utf-8"), "utf-8")
        assert name in shipped.read_text("utf-8")
    assert 0 < ship.ship(work, tmp_path / "out") == ship.compressed(tmp_path / "out")
    for file in (tmp_path / "out").rglob("*.*"):
        assert "/home/someone" not in file.read_text("utf-8")
    monkeypatch.setattr(ship, "LARGEST", 10)
    with pytest.raises(ValueError, match="expected at most 10"):
        ship.ship(work, tmp_path / "out")
