"""Oracles of the four published families, small and random, against plain hooks."""

import pytest
import torch
from nnsight import TransformersModel
from transformers import (
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from tests.helpers import plain_oracle

D = 32
SHAPE = {
    "vocab_size": 1496,
    "hidden_size": D,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
GEMMA = {**SHAPE, "sliding_window": 8, "query_pre_attn_scalar": 16}
FAMILIES = {
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
    "gemma2": (Gemma2ForCausalLM, Gemma2Config(**GEMMA, attn_implementation="eager")),
    "gemma3": (Gemma3ForCausalLM, Gemma3TextConfig(**GEMMA)),
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
}
QUESTIONS = ["Is the tone calm?", "What is the subject?", "Is it ? ?? a city?"]
SCALE = 8.0
"""A random model hardly hears a vector of the residual's own length."""
SHORT = Sampling(max_new_tokens=6)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.paths()["target"])


@pytest.fixture(params=sorted(FAMILIES))
def pair(request, tokenizer):
    """A plain model of the family, and an oracle on the same weights."""
    kind, config = FAMILIES[request.param]
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.uniform_(-1, 1)
    checkpoint = Checkpoint(
        layer=2,
        layers=(1, 2),
        d_model=D,
        template=ORACLE_TEMPLATE,
        marker="?",
        injection=Injection("add", "block", 1, SCALE),
    )
    av = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
    return model, NLA(av, checkpoint=checkpoint, sampling=SHORT)


def reference(model, tokenizer, question, vectors, layer=2):
    return plain_oracle.answer(
        model,
        tokenizer,
        question,
        vectors,
        layer=layer,
        slots=len(vectors),
        new_tokens=6,
        scale=SCALE,
    )[0]


def test_answers_are_those_of_a_plain_hook(pair, tokenizer):
    model, nla = pair
    vectors = torch.randn(3, 3, D, generator=torch.Generator().manual_seed(2))
    asked = nla.ask(vectors, QUESTIONS)
    ours = asked.text
    assert ours == [
        reference(model, tokenizer, *each) for each in zip(QUESTIONS, vectors, strict=True)
    ]
    assert asked.receipt.injection_cosine == pytest.approx([1.0] * 3, abs=1e-4)
    other = nla.ask(vectors[0], QUESTIONS[0], layer=1)
    assert other.text == reference(model, tokenizer, QUESTIONS[0], vectors[0], layer=1)


def test_a_ragged_list_and_the_other_engine(pair, tokenizer):
    model, nla = pair
    vectors = [torch.randn(k, D, generator=torch.Generator().manual_seed(k)) for k in (1, 3, 2)]
    ours = nla.ask(vectors, "What is the subject?")
    expected = [reference(model, tokenizer, "What is the subject?", each) for each in vectors]
    assert ours.text == expected
    assert [len(each) for each in ours.vectors] == [1, 3, 2]
    plain = NLA(nla.av, checkpoint=nla.checkpoint, sampling=SHORT, engine="generate")
    assert plain.ask(vectors, "What is the subject?").text == expected


@pytest.mark.parametrize(
    "words",
    [
        ["Paris", "No"],  # One token each.
        ["Yes", "No"],  # Two, and one.
        ["Yes", "Yet", "French", "What is the capital", "No"],  # A common beginning.
    ],
)
def test_choices_are_compared_by_all_their_tokens(pair, tokenizer, words):
    model, nla = pair
    vectors = torch.randn(2, D, generator=torch.Generator().manual_seed(4))
    question = "Is the tone calm?"
    asked = nla.ask(torch.stack([vectors, vectors.flip(0)]), question, choices=words)
    ids, sites = plain_oracle.prompt(tokenizer, question, 2, 2)
    for row, held in enumerate((vectors, vectors.flip(0))):  # Each slot has its own vector.
        expected = []
        for word in words:
            said, scores = tokenizer.encode(word), []
            for place, token in enumerate(said):
                logits = plain_oracle.first_logits(
                    model, [*ids, *said[:place]], sites, held, scale=SCALE
                )
                scores.append(logits.log_softmax(0)[token])
            expected.append(torch.stack(scores).sum().exp().item())
        mass = sum(expected)
        ours = list(asked.probabilities[row].values())
        assert ours == pytest.approx([each / mass for each in expected], rel=1e-3)
        assert asked.mass[row] == pytest.approx(mass, rel=1e-3)
        assert asked.text[row] == words[expected.index(max(expected))]
    assert (asked.finish[0], asked.warnings[0]) == ("choice", ())
    assert asked.probabilities[0] != asked.probabilities[1]


def test_null_is_the_prompt_with_nothing_written(pair, tokenizer):
    model, nla = pair
    question = "What is the tone?"
    label = nla.ask(torch.randn(2, D), question).trust
    expected = plain_oracle.answer(
        model, tokenizer, question, None, layer=2, slots=2, new_tokens=6
    )[0]
    assert label.without == expected
