"""Padding is not explained: ``at=`` leaves it out, and without it a trace warns."""

import pickle
import re
import warnings

import pytest
import torch

from nnsight_nla import InjectionError, NLAWarning
from nnsight_nla.core.ragged import misfit, picked
from nnsight_nla.models.hosts import Positions

PROMPTS = ["What a lovely day! People in Paris speak", "The cow lives in the"]
PAID = "vectors were read at padding, not at a token of a prompt"


@pytest.fixture
def alone(model, nla):
    """The vectors of each prompt without a batch."""
    found = []
    for prompt in PROMPTS:
        with model.trace(prompt):
            found.append(nla.layer(model).output[0].detach().save())
    return found


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_gives_a_ragged_handle(model, nla, alone, monkeypatch, side):
    monkeypatch.setattr(model.tokenizer, "padding_side", side)
    places = nla.positions(model, PROMPTS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", NLAWarning)
        with model.trace(PROMPTS):
            thought = nla.explain(nla.layer(model).output, at=places)
    assert thought.lengths == (9, 5)
    assert len(thought) == 2
    assert thought.shape == (14,)
    assert thought.tokens == [list(each.tokens) for each in places]
    assert thought.positions == [list(range(9)), list(range(5))]
    torch.testing.assert_close(thought.vectors, torch.cat(alone), atol=1e-4, rtol=1e-4)
    for prompt, vectors in zip(thought, alone, strict=True):
        torch.testing.assert_close(prompt.vectors, vectors, atol=1e-4, rtol=1e-4)
    last = [prompt[-1] for prompt in thought]
    nla.resolve(last)
    assert last[0].text.startswith("About Paris")
    assert last[1].text.startswith("About the cow")
    assert (last[1].tokens, last[1].positions) == (" the", 4)


def test_a_ragged_handle_is_indexed_by_prompt(model, nla):
    with model.trace(PROMPTS):
        thought = nla.explain(nla.layer(model).output, at=nla.positions(model, PROMPTS))
    assert thought[1, -1].tokens == thought[1][-1].tokens == " the"
    assert thought[-1].shape == (5,)
    assert thought[::-1].lengths == (5, 9)
    assert thought[::-1].tokens == thought.tokens[::-1]
    assert thought[[1]].tokens == [thought.tokens[1]]
    assert thought[:0].lengths == ()
    assert repr(thought) == "<Explanation of 2 prompts, 14 tokens, 14 pending>"
    with pytest.raises(IndexError):
        thought[2]
    with pytest.raises(IndexError, match=re.escape("Take one prompt first: handle[0][-1]")):
        thought[:, -1]
    copy = pickle.loads(pickle.dumps(thought))
    assert (copy.lengths, copy.tokens) == (thought.lengths, thought.tokens)


def test_errors_and_records_have_the_prompt_and_the_token(nla):
    vectors = torch.ones(2, 3, 128)
    vectors[1, 2] = 0
    at = [Positions((1, 2, 3), ("a", "b", "c")), Positions((4,), ("d",))]
    thought = nla.explain(vectors, at=at)
    assert thought.errors == {(1, 0): "is zero, it has no direction"}


@pytest.mark.parametrize("shape", [True, False], ids=["batch", "prompt"])
def test_an_invoke(model, nla, alone, shape):
    (place,) = nla.positions(model, PROMPTS[1])
    with model.trace() as tracer:
        with tracer.invoke(PROMPTS[0]):
            pass
        with tracer.invoke(PROMPTS[1]):
            output = nla.layer(model).output
            thought = nla.explain(output, at=[place]) if shape else nla.explain(output[0], at=place)
    assert thought.lengths == ((5,) if shape else None)
    torch.testing.assert_close(thought.vectors, alone[1], atol=1e-4, rtol=1e-4)


READ = {
    "all": (lambda output: output, [9, 10, 11, 12]),
    "first": (lambda output: output[:, 0], [1]),
    "short": (lambda output: output[1], [0, 1, 2, 3]),
    "from 2": (lambda output: output[1, 2:], [0, 1]),
    "steps": (lambda output: output[:, ::3], [3, 4]),
    "copy": (lambda output: output.clone(), [9, 10, 11, 12]),
    "double": (lambda output: output.double(), [9, 10, 11, 12]),
    "last": (lambda output: output[:, -1], []),
    "long": (lambda output: output[0], []),
    "real": (lambda output: output[1, -5:], []),
}


@pytest.mark.parametrize("read", READ)
def test_vectors_at_padding_are_said(model, nla, read):
    take, pads = READ[read]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.trace(PROMPTS):
            thought = nla.explain(take(nla.layer(model).output))
    said = [str(each.message) for each in caught if PAID in str(each.message)]
    assert [int(each.split()[0]) for each in said] == ([len(pads)] if pads else [])
    assert all(each.endswith("at=nla.positions(model, prompts)).") for each in said)
    assert sorted(thought.capture.padding) == pads


def test_a_text_of_padding_has_a_warning(model, nla):
    with pytest.warns(NLAWarning, match=PAID), model.trace(PROMPTS):
        thought = nla.explain(nla.layer(model).output[:, 0])
    assert [PAID.partition(", ")[0].removeprefix("vectors were ") in str(each)
            for each in thought.warnings] == [False, True]  # fmt: skip


def test_a_generation_reads_padding_in_its_first_step_only(model, nla):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with model.generate(PROMPTS, max_new_tokens=3, do_sample=False) as tracer:
            for _ in tracer.iter[:3]:
                nla.explain(nla.layer(model).output)
    assert len([each for each in caught if PAID in str(each.message)]) == 1


MISFITS = {
    "order": (lambda nla, model: nla.positions(model, PROMPTS[::-1]), "prompt 0 has 5 tokens"),
    "count": (lambda nla, model: nla.positions(model, PROMPTS[0]), "at= is of 1 prompts, and"),
    "side": (
        lambda nla, model: nla.positions(model, PROMPTS, padding_side="right"),
        "prompt 1 has 5 tokens, at 0 to 4, and the running batch has 5, from 4 on",
    ),
    "longer": (
        lambda nla, model: nla.positions(model, [PROMPTS[0] + " French.", PROMPTS[1]]),
        "The longest prompt of at= has 11 tokens, and the vectors 9 positions",
    ),
    "other": (lambda nla, model: "x", "at='x': expected what nla.positions(model, prompts) return"),
    "empty": (lambda nla, model: [], "at=[]: expected what nla.positions(model, prompts) return"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_positions_of_other_prompts_are_refused(model, nla, case):
    make, said = MISFITS[case]
    at = make(nla, model)
    with pytest.raises(InjectionError, match=re.escape(said)), model.trace(PROMPTS):
        nla.explain(nla.layer(model).output, at=at)


def test_tokens_are_said_once(nla):
    with pytest.raises(InjectionError, match="at= says tokens and positions already"):
        nla.explain(torch.ones(1, 1, 128), at=[Positions((1,), ("a",))], tokens=[["a"]])


def test_outside_of_a_trace_the_longest_prompt_fills_the_batch():
    """So a beginning that one of the two lacks is noticed."""
    at = [Positions((1, 2), ("a", "b")), Positions((1,), ("a",))]
    assert misfit((2, 2, 4), at, alone=True) is None
    assert "the vectors 3 positions" in misfit((2, 3, 4), at, alone=True)
    assert misfit((2, 3, 4), at) is None
    assert picked(torch.arange(4.0).reshape(2, 2, 1), at).flatten().tolist() == [0.0, 1.0, 3.0]
