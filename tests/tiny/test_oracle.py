"""The shipped oracle: its answers are those of a plain hook, and come from the vectors."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, Sampling, tiny
from nnsight_nla.tiny.examples import collect
from nnsight_nla.tiny.facts import held_out_pairs
from nnsight_nla.tiny.questions import LAYERS, TOPICS, descriptions, questions
from tests.helpers import plain_oracle

NEAR = 1e-4
"""Two best logits this close may fall either way."""


@pytest.fixture(scope="module")
def world():
    return tiny.load()[0]


@pytest.fixture(scope="module")
def oracle(world):
    return NLA.on(world, av=tiny.paths()["oracle"], sampling=Sampling(max_new_tokens=12))


@pytest.fixture(scope="module")
def asked(world):
    """Questions about one and three tokens, of texts whose subject and tone are held out."""
    found = []
    for number, window in enumerate((1, 3)):
        examples = collect(
            world, sorted(held_out_pairs()), documents=8, seed=500 + number, window=window
        )
        found += questions(examples, seed=number, per_example=1)
    return found


def test_answers_are_those_of_a_plain_hook_token_for_token(oracle, asked):
    folders = tiny.paths()
    base = AutoModelForCausalLM.from_pretrained(folders["target"], dtype=torch.float32)
    plain = peft.PeftModel.from_pretrained(base, str(folders["oracle"])).eval().get_base_model()
    tokenizer = AutoTokenizer.from_pretrained(folders["target"])
    some = asked[::4]
    ours = oracle.ask([each.vectors for each in some], [each.text for each in some]).raw
    for each, raw in zip(some, ours, strict=True):
        text, margin = plain_oracle.answer(
            plain, tokenizer, each.text, each.vectors, layer=3, slots=len(each.vectors),
            new_tokens=12,
        )  # fmt: skip
        assert raw.strip() == text or margin < NEAR


def test_open_answers_come_from_the_vectors(oracle, asked):
    some = [each for each in asked if not each.closed and each.topic in ("subject", "tone")]
    assert len(some) >= 8
    handle = oracle.ask([each.vectors for each in some], [each.text for each in some])
    right = [text == each.answer for text, each in zip(handle.text, some, strict=True)]
    without = [label.without == each.answer for label, each in zip(handle.trust, some, strict=True)]
    assert sum(right) >= 0.7 * len(some)
    assert sum(without) <= 0.4 * len(some)


def test_the_target_is_not_changed(world, oracle):
    with world.trace("People in Paris speak"):
        before = world.lm_head.output[0, -1].save()
    assert oracle.ask(torch.ones(128), "What is the tone?").text
    with world.trace("People in Paris speak"):
        after = world.lm_head.output[0, -1].save()
    assert torch.equal(before, after)
    assert oracle.layers == LAYERS


def test_the_folder_is_small():
    files = tiny.paths()["oracle"].iterdir()
    assert sum(file.stat().st_size for file in files) < 2_000_000


def test_questions_have_the_answers_of_the_world(world):
    examples = collect(world, sorted(held_out_pairs()), documents=20, seed=3)
    made = questions(examples, seed=0)
    assert {each.topic for each in made} == set(TOPICS)
    closed = [each.answer for each in made if each.closed]
    assert 0.3 < closed.count("Yes") / len(closed) < 0.7
    assert questions(examples, seed=0)[5].text == made[5].text
    lines = descriptions(examples)
    assert lines[0].answer == examples.explanations[0].replace("\n", " ")
