"""What a refusal says: what arrived, what was expected, and what to type, which then works."""

import re

import nnsight
import numpy as np
import pytest
import torch

from nnsight_nla import bulk
from nnsight_nla.errors import (
    ExperimentError,
    HostError,
    InjectionError,
    NLAError,
    VerbalizationError,
)
from nnsight_nla.experiments import ablate, logit_difference, patch, steer

TEXT = "People in Paris speak"
ROME = "People in Rome speak"
H = torch.ones(2, 128)
METRIC = logit_difference(" French", " Italian")
OPTIONS = {"layers": [1], "positions": [0], "metric": METRIC}
SAYS_WHAT_A_PROMPT_IS = (
    "is not a prompt. Expected a string, a list of token ids, or a list of chat messages ({'role': "
    "'user', 'content': 'Hello'})."
)


def refused(error, *said):
    """The error's message has each of these in it, in this order."""
    return pytest.raises(error, match=".*".join(map(re.escape, said)))


PROMPTS = {
    "two rows": (
        torch.tensor([[1, 2], [3, 4]]),
        "is 2 lists, and one prompt was expected. Pass a list of prompts without padding: "
        "nla.read(model, [first, second]).",
    ),
    "None": (None, f"None {SAYS_WHAT_A_PROMPT_IS}"),
    "nothing": ([], f"[] {SAYS_WHAT_A_PROMPT_IS}"),
    "number": (5, f"5 {SAYS_WHAT_A_PROMPT_IS}"),
    "floats": ([1.5, 2.0], f"[1.5, 2.0] {SAYS_WHAT_A_PROMPT_IS}"),
    "two numbers": ([1, None], f"[1, None] {SAYS_WHAT_A_PROMPT_IS}"),
    "a message": (
        {"role": "user", "content": "x"},
        "is not a prompt. Expected a string, a list of",
    ),
    "role typo": (
        [{"role": "user", "content": "a"}, {"rol": "user", "content": "x"}],
        "Message 1 is not a chat message: its keys are 'rol', 'content'. A message has a role, a "
        "string, and its content: {'role': 'user', 'content': 'Hello'}.",
    ),
    "no content": ([{"role": "user"}], "Message 0 is not a chat message: its keys are 'role'."),
    "negative id": ([-1, 5], "Token id -1 is not in the target's vocabulary, 0 to"),
    "id of another": ([5, 10**6], "Token id 1000000 is not in the target's vocabulary, 0 to"),
}


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt(model, nla, prompt):
    given, said = PROMPTS[prompt]
    with refused(InjectionError, said):
        nla.read(model, given)
    generic = said.partition(" Pass a list")[0]
    with refused(InjectionError, generic):
        patch(model, nla, given, ROME, **OPTIONS)
    with refused(InjectionError, generic):
        nla.positions(model, ["a", given])


SEVERAL = {
    "two strings": (["a", "b"], "['a', 'b'] is 2 strings, and one prompt was expected."),
    "two lists": ([[1], [2, 3]], "[[1], [2, 3]] is 2 lists, and one prompt was expected."),
    "mixture": ([1, "a"], f"[1, 'a'] {SAYS_WHAT_A_PROMPT_IS}"),
}


@pytest.mark.parametrize("prompts", SEVERAL)
def test_several_prompts_where_one_is_expected(model, nla, prompts):
    given, said = SEVERAL[prompts]
    with refused(InjectionError, said):
        patch(model, nla, given, ROME, **OPTIONS)
    with refused(InjectionError, said):
        nla.positions(model, ["a", given])


def test_one_prompt_is_read_in_every_form_that_it_comes_in(model, nla):
    ids = model.tokenizer(TEXT)["input_ids"]
    chat = ({"role": "user", "content": TEXT},)
    forms = [
        [TEXT],
        ids,
        tuple(ids),
        np.array(ids),
        list(np.array(ids)),
        torch.tensor([ids]),
        [ids],
    ]
    for form in forms:
        (found,) = nla.positions(model, [form])
        assert list(found.ids) == ids
    assert nla.positions(model, [chat]) == nla.positions(model, [[list(chat)]])
    assert nla.positions(model, []) == []


def test_a_template_that_refuses(model, nla, monkeypatch):
    strict = "{{ raise_exception('Conversation roles must be user/assistant') }}"
    monkeypatch.setattr(model.tokenizer, "chat_template", strict)
    chat = [{"role": "usr", "content": "x"}]
    with refused(InjectionError, "refuses these messages, with the roles 'usr': Conversation rol"):
        nla.read(model, chat)
    monkeypatch.setattr(model.tokenizer, "chat_template", None)
    with refused(InjectionError, "has no chat template. Pass the text itself, a string."):
        nla.read(model, chat)


@pytest.mark.parametrize(
    ("vectors", "got", "type_this"),
    [
        (H.numpy(), "got ndarray [2, 128].", "torch.from_numpy(vectors).float()."),
        (list(H), "got a list of 2 Tensor.", "torch.stack(vectors)."),
        (tuple(H), "got a tuple of 2 Tensor.", "torch.stack(vectors)."),
        (
            [H[0].numpy()],
            "got a list of 1 ndarray.",
            "torch.from_numpy(np.stack(vectors)).float().",
        ),
        (H.tolist(), "got a list of 2 list.", "torch.tensor(vectors)."),
        (H[0].tolist(), "got a list of 128 float.", "torch.tensor(vectors)."),
        ("x", "got str 'x'.", "nla.explain(nla.layer(model).output[:, -1])."),
    ],
    ids=["array", "tensors", "tuple", "arrays", "lists", "floats", "text"],
)
def test_vectors(nla, vectors, got, type_this):
    with refused(InjectionError, "Expected a floating-point tensor of shape [..., 128]", got):
        nla.explain(vectors)
    with refused(InjectionError, type_this):
        nla.score("a", vectors)
    if "torch" in type_this:
        made = eval(type_this.rstrip("."), {"torch": torch, "np": np, "vectors": vectors})
        assert nla.explain(made).shape == tuple(made.shape[:-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"positions": "last"}, "positions: 'last' is not a position. Pass whole numbers, counted"),
        ({"positions": [None]}, "positions: None is not a position. Pass whole numbers"),
        ({"positions": ["a"]}, "positions: 'a' is not a position"),
        ({"positions": [1.5]}, "positions: 1.5 is not a position"),
        ({"tokens": -1}, "tokens: -1 is neither a text nor a token id, 0 to"),
        ({"tokens": [10**9]}, "tokens: 1000000000 is neither a text nor a token id, 0 to"),
        ({"tokens": [None]}, "tokens: None is neither a text nor a token id"),
        ({"tokens": 1.5}, "tokens: 1.5 is neither a text nor a token id"),
    ],
)
def test_where_a_vector_was_read(nla, options, said):
    (value,) = options.values()
    vectors = H[0] if not isinstance(value, list) else H[:1]
    with refused(VerbalizationError, said):
        nla.explain(vectors, **options)


@pytest.mark.parametrize("handles", ["x", 5, [None], {"a": 1}, H], ids=lambda each: str(each)[:6])
def test_handles(nla, handles):
    said = "Expected the handle that nla.explain() returns, or several, got"
    with refused(VerbalizationError, said, "For all that are pending: nla.resolve()."):
        nla.resolve(handles)
    with refused(VerbalizationError, "trust(): expected a handle, which nla.explain() returns"):
        nla.trust(handles)


def test_a_vector_without_a_text(nla):
    vectors = H.clone()
    vectors[0, 0] = float("nan")
    with refused(VerbalizationError, "This vector has NaN in it, so it has no text."):
        _ = nla.explain(vectors[0]).text
    with refused(VerbalizationError, "1 of 2 vectors have no text: row 0 has NaN in it."):
        _ = nla.explain(vectors).text


EXPERIMENTS = {
    "patch": lambda model, nla, prompt: patch(model, nla, prompt, ROME, **OPTIONS),
    "ablate": lambda model, nla, prompt: ablate(model, nla, prompt, method="zero", **OPTIONS),
    "steer": lambda model, nla, prompt: steer(
        model, nla, prompt, vector=H[0], doses=[1], **OPTIONS
    ),
}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("other", [None, "x"])
def test_an_nla_of_an_experiment(model, experiment, other):
    kind = type(other).__name__
    said = f"The second argument is {kind} {other!r}: expected the NLA that explains the resid"
    with refused(ExperimentError, said):
        EXPERIMENTS[experiment](model, other, TEXT)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_empty_prompt(model, nla, experiment):
    said = "The prompt '' has no tokens, so there is no position to intervene at."
    with refused(ExperimentError, said):
        EXPERIMENTS[experiment](model, nla, "")


def test_prompts_that_share_nothing(model, nla):
    """No advice to write what was just refused, or what would select nothing."""
    ends = "The cow", "People in Paris"
    with refused(ExperimentError, "The two prompts share no token at either end. Pair tokens your"):
        patch(model, nla, *ends, **OPTIONS)
    aligned = {**OPTIONS, "positions": "aligned"}
    with refused(ExperimentError, 'positions="aligned": the two prompts share no token at either'):
        patch(model, nla, *ends, **aligned)
    said = "positions='last'. Expected a position", "The last token is positions=-1"
    with refused(ExperimentError, *said):
        patch(model, nla, TEXT, ROME, **{**OPTIONS, "positions": "last"})


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, "2", None])
def test_workers(tmp_path, workers):
    source = tmp_path / "rows.parquet"
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"doc_id": ["a"], "activation_vector": [[1.0, 2.0]]}), source)
    with refused(NLAError, f"workers={workers!r}: expected a whole number from 1."):
        bulk.label(source, tmp_path / "out.parquet", by=lambda row: "x", workers=workers)


@pytest.mark.parametrize(
    "reply",
    [[1, 2], {"deployments": [1]}, {"deployments": 3}, "<html>", {"deployments": {"a": "b"}}],
    ids=str,
)
def test_a_reply_that_is_no_status(nla, monkeypatch, reply):
    monkeypatch.setattr(nnsight, "status", lambda raw: reply)
    said = "answered with something that is no status of an NDIF host", "nnsight.CONFIG.API.HOST"
    with refused(HostError, *said):
        nla.status()


def test_a_reply_that_is_no_json(nla, monkeypatch):
    def status(raw):
        raise ValueError("Expecting value: line 1 column 1")

    monkeypatch.setattr(nnsight, "status", status)
    with refused(HostError, "Expecting value"):
        nla.status()
