"""Step 2: train the target, a six-block Qwen3, on the world's texts.

**Its state is put there on purpose.** A model this small, trained on next tokens alone, keeps
little at block K beyond what the next token needs (a linear probe finds the subject in 38% of the
tokens and the tone at chance), so there would be nothing to verbalize. Four linear heads on the
normalized output of block K (subject, tone, stage, current token) therefore add an auxiliary loss
during training and are thrown away afterwards. This guarantees *that* the residual at K holds the
state; the verbalizer still reads nothing but the vector.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnsight_nla.tiny.examples import K

from .target_samples import (
    IGNORED,
    STAGE_LABELS,
    SUBJECT_LABELS,
    TONE_LABELS,
    Sample,
    batches,
    draw,
    pad,
)


@dataclass(frozen=True)
class TargetSettings:
    """How the target is trained."""

    steps: int = 600
    """Optimizer steps; the facts are learned after about half of them."""
    batch_size: int = 32
    """Samples per step."""
    learning_rate: float = 3e-3
    """The peak, reached after `warmup` steps; a cosine lowers it to 5% of that."""
    warmup: int = 50
    """Steps of linear warm-up."""
    state_weight: float = 0.3
    """The weight of the four heads' loss relative to the next-token loss."""
    seed: int = 0
    """The seed of the initial weights, the samples and their order."""


def train_target(
    tokenizer: Any,
    settings: TargetSettings = TargetSettings(),
    *,
    report: Callable[[str], None] | None = None,
) -> Any:
    """Train a target from scratch and return it in evaluation mode, in float32.

    Args:
        tokenizer: The tokenizer that `train_tokenizer` made.
        settings: Steps, rates and seed.
        report: Called with a line of progress every 100 steps.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed + 1)
    samples = [draw(tokenizer, rng) for _ in range(settings.batch_size * (settings.steps + 16))]
    model = new_target(tokenizer).train()
    heads = _new_heads(model)
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    order = batches(samples, settings.batch_size, settings.steps, rng)
    for step, batch in enumerate(order, start=1):
        ids = pad([sample.ids for sample in batch], tokenizer.pad_token_id)
        labels = pad([sample.ids for sample in batch], IGNORED)
        # Padding is on the right and attention is causal, so no mask is needed.
        output = model(input_ids=ids, labels=labels, use_cache=False, output_hidden_states=True)
        state = _state_loss(heads, output.hidden_states[K + 1], ids, batch)
        (output.loss + settings.state_weight * state).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        if report is not None and step % 100 == 0:
            report(f"target: step {step}, loss {output.loss.item():.3f}, state {state.item():.3f}")
    return model.eval()


def new_target(tokenizer: Any) -> Any:
    """Return an untrained Qwen3 of 1.4 million parameters."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=math.ceil(len(tokenizer) / 8) * 8,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    model = Qwen3ForCausalLM(config)
    # Five times the default: these rows are also the unembedding, which starts without contrast.
    nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    return model


def _new_heads(model: Any) -> nn.ModuleList:
    """Return linear heads for subject, tone, stage and current token."""
    d_model, vocabulary = model.config.hidden_size, model.config.vocab_size
    labels = (SUBJECT_LABELS, TONE_LABELS, STAGE_LABELS)
    heads = nn.ModuleList(nn.Linear(d_model, len(each)) for each in labels)
    heads.append(nn.Linear(d_model, vocabulary, bias=False))
    return heads


def _state_loss(
    heads: nn.ModuleList, residual: Tensor, ids: Tensor, batch: Sequence[Sample]
) -> Tensor:
    """Return the loss of the four heads, which puts the state into the residual at K."""
    hidden = F.rms_norm(residual, residual.shape[-1:], eps=1e-6)
    total = hidden.new_zeros(())
    for slot, head in enumerate(list(heads)[:3]):
        labels = pad([sample.state[slot] for sample in batch], IGNORED)
        # The mean over no labels would be NaN.
        if bool((labels != IGNORED).any()):
            total = total + F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten())
    chosen = torch.randperm(ids.numel())[:256]
    logits = heads[3](hidden.flatten(0, 1)[chosen])
    return total + F.cross_entropy(logits, ids.flatten()[chosen])


def _rate(step: int, settings: TargetSettings) -> float:
    """Return the learning rate after `step` steps, as a share of its peak."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
