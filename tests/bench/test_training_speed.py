"""What a verbalizer's step costs beside a plain one: the same model, the same tokens.

A plain step is what anyone's fine-tuning on chats does: a forward pass of prompt and response, the
causal loss on the response (labels of -100 on the prompt), backward, AdamW. The verbalizer's adds
writing the vectors and leaves out the prompt's logits. Both are timed in turn within one run, in
processor time, which other work on the machine changes less than the clock on the wall. Run with
``pytest tests/bench/test_training_speed.py -s``.
"""

import statistics
import time

import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from nnsight_nla.training import describe
from nnsight_nla.training.rows import collate, verbalizer_rows
from nnsight_nla.training.verbalizer import response_loss, writing
from tests.helpers.published import records, tokenizer

LEAST = 0.95
"""The share of a plain step's tokens per second."""
ROUNDS = 7
ROWS = 4


@pytest.mark.parametrize("vocabulary", ["small", "large"])
def test_a_verbalizers_step_is_as_fast_as_a_plain_one(vocabulary):
    live = tokenizer()
    size = len(live) if vocabulary == "small" else 32_000
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=size, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=512,
        )
    )  # fmt: skip
    model.train()
    checkpoint = describe(live, layer=3, d_model=256)
    long = "<explanation>\n" + "About Paris, the capital of France. " * 9 + "\n</explanation>"
    vectors = torch.randn(ROWS, 256)
    rows = [
        {**row, "response": long, "activation_vector": vector}
        for row, vector in zip(records(ROWS), vectors, strict=True)
    ]
    tokenized, prompt = verbalizer_rows(rows, live, checkpoint)
    batch = collate([tokenized[i] for i in range(ROWS)])
    tokens = batch["input_ids"].numel()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(loss):
        start = time.process_time()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    def plain():
        ids, labels = batch["input_ids"], batch["labels"]
        return model(input_ids=ids, labels=labels, use_cache=False).loss

    def ours():
        with writing(model, prompt.sites, checkpoint.injection) as hook:
            hook.vectors = batch["vectors"]
            return response_loss(model, batch, len(prompt.ids))

    step(plain), step(ours)
    pairs = [(step(plain), step(ours)) for _ in range(ROUNDS)]
    share = statistics.median(theirs / mine for theirs, mine in pairs)
    alone, made = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(
        f"\n{tokens} tokens, vocabulary {size}: plain {tokens / alone:,.0f} tokens/s, the "
        f"verbalizer's step {tokens / made:,.0f} ({share:.3f} of it; medians of {ROUNDS})"
    )
    assert share >= LEAST
