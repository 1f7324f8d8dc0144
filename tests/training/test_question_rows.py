"""The training rows of an oracle, and a training that learns to hear its vectors."""

import re

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from nnsight_nla import tiny
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.core.injection import Injection, write, write_slots
from nnsight_nla.training import HeldOut, Settings, TrainingError, describe, train_verbalizer
from nnsight_nla.training.question_rows import question_rows
from nnsight_nla.training.rows import IGNORED, collate

D = 16


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(tiny.paths()["target"])


@pytest.fixture(scope="module")
def checkpoint(tokenizer):
    return describe(
        tokenizer, layer=1, layers=(1, 2), d_model=D, marker="?", template=ORACLE_TEMPLATE,
        ar_template=None,
    )  # fmt: skip


def row(**changes):
    return {
        "question": "Is it?", "answer": "No", "activation_vectors": torch.ones(2, D), **changes
    }  # fmt: skip


def test_rows_with_different_slots_and_layers_are_one_batch(tokenizer, checkpoint):
    rows = [row(), row(activation_vectors=torch.ones(3, D), layer=2, answer="calm")]
    batch = collate([question_rows(rows, tokenizer, checkpoint)[i] for i in (0, 1)])
    assert batch["vectors"].shape == (2, 3, D)
    one, two = (len(tokenizer.encode(f"<|im_start|>user\nLayer: {k}\n")) for k in (1, 2))
    assert one != two  # " 2" is one token, " 1" is two: every row has its own sites.
    assert batch["sites"].tolist() == [[one, one + 1, -1], [two, two + 1, two + 2]]
    for ids, labels, answer in zip(
        batch["input_ids"], batch["labels"], ("No", "calm"), strict=True
    ):
        said = labels[labels != IGNORED]
        assert tokenizer.decode(said) == f"{answer}<|im_end|>"
        assert torch.equal(ids[labels != IGNORED], said)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": " "}, "Row 0: the question is empty"),
        ({"answer": ""}, "Row 0: the answer is empty"),
        ({"activation_vectors": torch.ones(D)}, "expected [slots, 16]. For one vector"),
        ({"activation_vectors": torch.ones(1, 5)}, "has shape [5], expected [16]"),
        ({"activation_vectors": torch.zeros(1, D)}, "vector 0 of activation_vectors is zero"),
        ({"activation_vectors": torch.ones(0, D)}, "Row 0 has no vectors"),
        ({"layer": 7}, "Row 0: layer=7"),
    ],
)
def test_a_row_that_does_not_fit(tokenizer, checkpoint, changes, message):
    with pytest.raises(TrainingError, match=re.escape(message)):
        question_rows([row(**changes)], tokenizer, checkpoint)


def test_what_has_no_rows(tokenizer, checkpoint):
    with pytest.raises(TrainingError, match="There are no rows"):
        question_rows([], tokenizer, checkpoint)
    with pytest.raises(TrainingError, match="Row 0 has no question, answer"):
        question_rows([{"activation_vectors": torch.ones(1, D)}], tokenizer, checkpoint)


def test_an_oracle_learns_to_tell_two_vectors_apart(tokenizer, checkpoint):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1496, hidden_size=D, intermediate_size=32, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    vectors = torch.randn(2, 1, D)
    rows = [row(activation_vectors=vectors[i], answer=("No", "calm")[i]) for i in (0, 1)] * 8
    log: list[dict[str, float]] = []
    train_verbalizer(
        Qwen3ForCausalLM(config), tokenizer, rows, checkpoint,
        Settings(steps=60, batch_size=16, learning_rate=2e-2, warmup=5),
        held_out=HeldOut(rows[:2], every=60), log=log,
    )  # fmt: skip
    assert max(line.get("eval_accuracy", 0.0) for line in log) == 1.0


def test_slots_are_written_as_by_single_writes():
    hidden, vectors = torch.randn(2, 6, D), torch.randn(2, 2, D)
    before = hidden.clone()
    injection = Injection("add", "block", 1)
    ours = write_slots(hidden, vectors, torch.tensor([[1, 2], [3, -1]]), injection)
    assert torch.equal(hidden, before)
    expected = hidden.clone()
    expected[0] = write(hidden[:1], vectors[:1, 0], 1, injection)[0]
    expected[0, 2] = write(hidden[:1], vectors[:1, 1], 2, injection)[0, 2]
    expected[1] = write(hidden[1:], vectors[1:, 0], 3, injection)[0]
    assert torch.equal(ours, expected)
