"""The recipe of the tiny pair: its tokenizer, its samples, its build, and its figures."""

import json
import random
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnsight_nla import Checkpoint, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE, MARKER_SLOT
from nnsight_nla.tiny.documents import Truth, Word, sample
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import NEUTRAL, SUBJECTS, held_out_pairs
from nnsight_nla.training import Lora, Settings
from tutorials.recipes.tiny import build, evaluate, oracle, oracle_figures
from tutorials.recipes.tiny.bounds import out_of_bounds
from tutorials.recipes.tiny.collect_rows import as_rows
from tutorials.recipes.tiny.made_up_claims import claim_rates
from tutorials.recipes.tiny.tables import markdown
from tutorials.recipes.tiny.target_samples import IGNORED, SUBJECT_LABELS, draw
from tutorials.recipes.tiny.train_target import TargetSettings, train_target
from tutorials.recipes.tiny.train_tokenizer import (
    MARKER,
    chat_prompt,
    encode_words,
    train_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny.paths()["target"])


def test_the_recipe_trains_the_shipped_tokenizer(tokenizer):
    trained = train_tokenizer()
    assert trained.get_vocab() == tokenizer.get_vocab()
    assert trained.chat_template == tokenizer.chat_template


def test_every_word_is_one_token_and_the_text_encodes_to_the_same(tokenizer):
    rng = random.Random(3)
    for document in (sample(rng) for _ in range(300)):
        ids = encode_words(tokenizer, document.words)
        assert ids == tokenizer.encode(document.text, add_special_tokens=False)
        assert len(ids) == len(document.words)


def test_every_subject_is_one_token_at_a_text_s_beginning_too(tokenizer):
    for name in SUBJECTS:
        assert len(tokenizer.encode(name)) == len(tokenizer.encode(f" {name}")) == 1


def test_a_word_of_another_world_is_refused(tokenizer):
    word = Word("photosynthesis", Truth(None, NEUTRAL, "unknown"), "other")
    with pytest.raises(ValueError, match=r"'photosynthesis' is \d+ tokens"):
        encode_words(tokenizer, [word])


def test_the_marker_is_one_token_between_the_brackets_of_its_tag(tokenizer):
    text = chat_prompt(tokenizer, AV_TEMPLATE.replace(MARKER_SLOT, MARKER))
    ids = tokenizer.encode(text, add_special_tokens=False)
    (marker,) = tokenizer.encode(MARKER, add_special_tokens=False)
    position = ids.index(marker)
    assert tokenizer.decode([ids[position - 1]]) == ">"
    assert tokenizer.decode([ids[position + 1]]) == "</"
    assert tokenizer.decode(ids) == text


def test_a_sample_labels_the_subject_from_its_first_mention_on(tokenizer):
    rng, asked = random.Random(0), 0
    for each in (draw(tokenizer, rng) for _ in range(100)):
        assert {len(labels) for labels in each.state} == {len(each.ids)}
        asked += tokenizer.decode(each.ids).startswith("<|im_start|>user\nDescribe the text.")
        due = [label for label in each.state[0] if label != IGNORED]
        assert due
        named = [label for label in due if SUBJECT_LABELS[label] is not None]
        assert len(set(named)) <= 1
        assert due == [SUBJECT_LABELS.index(None)] * (len(due) - len(named)) + named
    assert 3 <= asked <= 20


def test_a_target_is_determined_by_its_seed(tokenizer):
    settings = TargetSettings(steps=2, batch_size=4, warmup=1)
    first, again = (train_target(tokenizer, settings) for _ in range(2))
    other = train_target(tokenizer, TargetSettings(2, 4, warmup=1, seed=1))
    weights = [m.model.layers[0].mlp.up_proj.weight for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_rows_have_the_published_schema(model):
    examples = collect(model, sorted(held_out_pairs()), documents=2, seed=5)
    rows = as_rows(examples)
    assert rows[0]["prompt"][0]["content"].count("<INJECT>") == 1
    assert rows[0]["response"] == f"<explanation>\n{examples.explanations[0]}\n</explanation>"
    assert torch.equal(rows[-1]["activation_vector"], examples.vectors[-1])


def test_the_build_makes_folders_that_load_and_measures_them(model, monkeypatch, tmp_path, capsys):
    """Two steps train nothing, so the only failures are figures out of bounds."""
    threads = torch.get_num_threads()

    def measure(target, nla):
        with target.trace("People in Paris speak"):
            thought = nla.explain(nla.layer(target).output[0, -1])
        assert isinstance(thought.text, str)
        assert nla.reconstruct("About Paris.").shape == (128,)
        assert nla.checkpoint.injection == Checkpoint.load(tiny.paths()["av"]).injection
        nla.sampling = Sampling(max_new_tokens=20)
        return evaluate.measure(target, nla, documents=2, pairs=1)

    monkeypatch.setattr(build, "train_tokenizer", lambda: model.tokenizer)
    monkeypatch.setattr(build, "TARGET_SETTINGS", TargetSettings(steps=2, batch_size=4))
    monkeypatch.setattr(build, "DOCUMENTS", 2)
    monkeypatch.setattr(build, "AV_SETTINGS", Settings(steps=1, batch_size=2))
    monkeypatch.setattr(build, "AR_SETTINGS", Settings(steps=1, batch_size=2))
    monkeypatch.setattr(build, "measure", measure)
    few = Settings(steps=4, batch_size=2, lora=Lora(rank=2, alpha=2))
    monkeypatch.setattr(build, "READING", few)
    monkeypatch.setattr(build, "ANSWERING", replace(few, lora=None))
    monkeypatch.setattr(oracle, "DOCUMENTS", 2)
    some = partial(oracle_figures.measure_oracle, documents=1)
    monkeypatch.setattr(oracle_figures, "measure_oracle", some)
    assert build.main(["--out", str(tmp_path)]) == 1
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "verbalizer: step 1 of 1, loss" in said
    assert "held_out/true/subject is 0.000, expected 0.95 to 1." in said
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures.keys() == tiny.figures().keys() - {"truth"}
    assert {folder.name for folder in Path(tmp_path, "weights").iterdir()} == set(tiny.paths())
    answered = json.loads((tmp_path / "oracle_figures.json").read_text())
    assert answered["questions"] > 0
    made = (tmp_path / "weights" / "oracle" / "tokenizer_config.json").read_text("utf-8")
    assert "is_local" not in made


def test_a_sidecar_says_what_the_pair_was_trained_on():
    text = (tiny.paths()["av"] / "nla_meta.yaml").read_text("utf-8")
    assert "18000 residuals of the target in 6000 texts of nnsight_nla.tiny.documents" in text
    assert build.DOCUMENTS == 6000


@pytest.mark.measured
def test_the_pair_is_as_good_as_promised(model, nla, capsys):
    figures = evaluate.measure(model, nla, documents=60, pairs=5)
    with capsys.disabled():
        sys.stdout.write(f"\n{markdown(figures)}\n")
    assert out_of_bounds(figures) == []


def test_the_shipped_figures_are_in_their_bounds():
    assert out_of_bounds(tiny.figures()) == []


def test_a_figure_that_drops_is_named(monkeypatch, capsys):
    figures = tiny.figures()
    monkeypatch.setattr(tiny, "load", lambda: (None, None))
    monkeypatch.setattr(evaluate, "measure", lambda model, nla: figures)
    assert evaluate.main([]) == 0
    assert "Every figure is in its bounds." in capsys.readouterr().out
    figures["held_out"]["true"]["subject"] = 0.5
    assert evaluate.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out) == figures
    assert evaluate.main(["--markdown"]) == 1
    assert "| true | 0.500 |" in capsys.readouterr().out
    assert evaluate.main([]) == 1
    assert "held_out/true/subject is 0.500, expected 0.95 to 1." in capsys.readouterr().out


def test_a_verbalizer_that_says_nothing_is_measured_too(model, nla):
    """A verbalizer that was hardly trained has empty texts, which count as not ranked."""
    held = collect(model, sorted(held_out_pairs()), documents=4, seed=7)

    class Terse:
        """Says every other text."""

        claims = staticmethod(nla.claims)

        def explain(self, vectors):
            texts = nla.explain(vectors).text
            return SimpleNamespace(text=[t * (i % 2) for i, t in enumerate(texts)])

    every, terse = claim_rates(nla, held), claim_rates(Terse(), held)
    assert terse["rows"] == every["rows"] > 4
    assert every["ranked"] == 1
    assert terse["ranked"] == (terse["rows"] // 2) / terse["rows"]
    assert terse["true_carries"] > terse["made_up_carries"]
