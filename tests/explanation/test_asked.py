"""What `ask` refuses: what arrived, what was expected, what to type."""

import re

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, Checkpoint, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.errors import CheckpointError, InjectionError, VerbalizationError
from nnsight_nla.experiments import patch

D = 128
QUESTION = "What is the tone?"


@pytest.fixture(scope="module")
def oracle():
    """An oracle that was never trained: the target itself."""
    checkpoint = Checkpoint(layer=3, layers=(3, 4), d_model=D, template=ORACLE_TEMPLATE, marker="?")
    copy = TransformersModel(str(tiny.paths()["target"]), task="text-generation")
    return NLA(copy, checkpoint=checkpoint, sampling=Sampling(max_new_tokens=4))


def refused(error, message):
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question(oracle, question):
    with refused(VerbalizationError, "is empty. Write what you want to know"):
        oracle.ask(torch.ones(1, D), question)


@pytest.mark.parametrize("question", [None, 5, b"What?"])
def test_a_question_that_is_no_text(oracle, question):
    with pytest.raises(VerbalizationError, match=r"question|questions"):
        oracle.ask(torch.ones(1, D), question)


def test_more_questions_than_rows_or_fewer(oracle):
    with refused(VerbalizationError, "3 questions for vectors of shape [2] (without slots"):
        oracle.ask(torch.ones(2, 1, D), ["a", "b", "c"])
    with refused(VerbalizationError, "vectors.expand(len(questions), -1, -1)"):
        oracle.ask(torch.ones(1, D), ["a", "b"])
    with refused(VerbalizationError, "1 question for vectors of shape [2] (without slots"):
        oracle.ask([torch.ones(2, D), torch.ones(1, D)], ["a"])
    with refused(VerbalizationError, "To ask each about one vector: vectors[:, None]"):
        oracle.ask(torch.ones(2, D), ["a", "b"])


def test_a_question_that_is_longer_than_the_context(oracle):
    with refused(VerbalizationError, "reads 512, of which 4 are for the answer. Shorten"):
        oracle.ask(torch.ones(1, D), "What? " * 400)
    with refused(VerbalizationError, "with 600 vectors has"):
        oracle.ask(torch.ones(600, D), QUESTION)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (["Yes, it is", "Yes"], "'Yes, it is' begins with the tokens of 'Yes', so"),
        (["Yes", "Yes"], "expected different words"),
        (["Yes"], "expected at least two words"),
        ("Yes", "expected at least two words"),
        (["Yes", ""], "expected at least two words"),
    ],
)
def test_choices_that_cannot_be_compared(oracle, choices, message):
    with refused(VerbalizationError, message):
        oracle.ask(torch.ones(1, D), QUESTION, choices=choices)


def test_choices_without_a_question(nla, model):
    with refused(VerbalizationError, "choices=['Yes', 'No'] without a question. Pass both"):
        nla.read(model, "The cow", choices=["Yes", "No"])
    with refused(VerbalizationError, "choices=['Yes', 'No'] without a question. Pass both"):
        patch(
            model, nla, "The cow", "The sun", metric=torch.sum, layers=[1], positions=-1,
            choices=["Yes", "No"],
        )  # fmt: skip


def test_choices_are_not_sampled(oracle):
    with refused(VerbalizationError, "nothing is sampled"):
        oracle.ask(
            torch.ones(1, D), QUESTION, choices=["Yes", "No"], samples=2,
            sampling=Sampling(temperature=1.0),
        )  # fmt: skip


def test_a_layer_that_the_oracle_was_not_told_of(oracle):
    with pytest.raises(CheckpointError, match=r"layer=2: .* 3, 4"):
        oracle.ask(torch.ones(1, D), QUESTION, layer=2)


def test_who_cannot_be_asked_and_who_cannot_explain(oracle, nla):
    with refused(CheckpointError, "explains vectors; its prompt has no place for a question"):
        nla.ask(torch.ones(1, D), QUESTION)
    with refused(CheckpointError, "explains vectors; its prompt has no place for a question"):
        nla.asking(QUESTION)
    with refused(CheckpointError, "is an activation oracle, which answers a question"):
        oracle.explain(torch.ones(D))
    with refused(CheckpointError, "is an activation oracle, which answers a question"):
        oracle.explain_nothing()
    with refused(CheckpointError, "handle.trust says what it answers without them"):
        oracle.score("Paris", torch.ones(D))


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (torch.ones(2, 0, D), "no vector to ask about"),
        (torch.ones(1, 5), "got [1, 5]"),
        (torch.ones(1, D, dtype=torch.long), "got torch.int64"),
        ([], "an empty list"),
        ([torch.ones(1, D), torch.ones(D)], "vectors[1] has shape [128]"),
        ([torch.ones(1, D), "x"], "got str"),
    ],
)
def test_vectors_that_are_none(oracle, vectors, message):
    with refused(InjectionError, message):
        oracle.ask(vectors, QUESTION)


def test_a_vector_without_a_direction_is_an_error_of_its_row(oracle):
    vectors = torch.ones(2, 2, D)
    vectors[1, 1] = 0
    asked = oracle.ask(vectors, QUESTION)
    assert asked.errors == {(1,): "number 1 is zero, it has no direction"}
    assert isinstance(asked[0].text, str)


def test_the_shape_is_that_of_the_vectors_without_slots(oracle):
    assert oracle.ask(torch.ones(D), QUESTION).shape == ()
    assert oracle.ask(torch.ones(5, D), QUESTION).shape == ()
    asked = oracle.ask(torch.randn(2, 3, 4, D), QUESTION)
    assert asked.shape == (2, 3)
    assert asked.vectors.shape == (2, 3, 4, D)
    assert asked[1].vectors.shape == (3, 4, D)
    assert asked.questions == [[QUESTION] * 3] * 2
