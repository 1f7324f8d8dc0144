"""The target: a six-block Qwen3 trained on the world's texts.

**Its state was put there on purpose.** A model this small, trained on next tokens alone, keeps at
block K little more than the next token needs (a linear probe finds the subject in 38% and the
tone at chance), so there would be nothing to verbalize. Four linear heads on the normalised
output of block K (subject, tone, stage, current token) therefore add an auxiliary loss during
training and are thrown away afterwards. What that settles is *that* the residual at K holds the
state; the verbalizer still reads nothing but the vector.

A tenth of the training samples ask for an explanation of a text in chat form. So the target
already knows the language of explanations when the verbalizer is fine-tuned from it, as Qwen3-8B
does.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ..checkpoint.reply import wrap
from .documents import Document, join, sample
from .explanations import UNSURE, explain
from .facts import NEUTRAL, RELATIONS, SUBJECTS, TONES
from .tokenizer import DESCRIBE, chat, encode_words

K = 3
"""The block whose output is verbalized, counted from 0."""

_SUBJECTS = (*SUBJECTS, None)
_TONES = (*TONES, NEUTRAL)
_STAGES = ("opening", "intro", "unknown", *RELATIONS)
_IGNORED = -100
# In a sample that asks for an explanation, the state of the whole text is due at the
# explanation's end.
_LAST_TOKENS = 20


@dataclass(frozen=True)
class TargetSettings:
    """The target's shape and its training."""

    steps: int = 600
    """Optimizer steps; the facts are learned after about half of them."""
    batch_size: int = 32
    """Samples a step."""
    learning_rate: float = 3e-3
    """The peak, after `warmup` steps; a cosine brings it down to 5% of that."""
    warmup: int = 50
    """Steps of linear warm-up."""
    state_weight: float = 0.3
    """The weight of the four heads' loss beside the next-token loss."""
    seed: int = 0
    """Of the initial weights, the samples and their order."""


@dataclass(frozen=True)
class _Sample:
    ids: list[int]
    state: tuple[list[int], list[int], list[int]]
    """The numbers of subject, tone and stage known at each token, `_IGNORED` where none is due."""


def new_target(tokenizer: Any) -> Any:
    """A Qwen3 of 1.4 million parameters, untrained."""
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
    # Five times the default: the rows are the unembedding's too, which starts without contrast.
    nn.init.normal_(model.model.embed_tokens.weight, std=0.1)
    return model


def train_target(
    tokenizer: Any,
    settings: TargetSettings = TargetSettings(),
    *,
    report: Callable[[str], None] | None = None,
) -> Any:
    """Train a target from scratch and return it in evaluation mode, in float32.

    Args:
        tokenizer: From `train_tokenizer`.
        settings: Steps, rates, seed.
        report: Called with a line of progress every 100 steps.
    """
    torch.manual_seed(settings.seed)
    rng = random.Random(settings.seed + 1)
    samples = [_sample(tokenizer, rng) for _ in range(settings.batch_size * (settings.steps + 16))]
    model = new_target(tokenizer).train()
    d_model = model.config.hidden_size
    heads = nn.ModuleList(
        nn.Linear(d_model, size) for size in (len(_SUBJECTS), len(_TONES), len(_STAGES))
    )
    heads.append(nn.Linear(d_model, model.config.vocab_size, bias=False))
    parameters = [*model.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, (0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, settings))
    for step, batch in enumerate(_batches(samples, settings, rng), start=1):
        ids = _pad([sample.ids for sample in batch], tokenizer.pad_token_id)
        labels = _pad([sample.ids for sample in batch], _IGNORED)
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


def _sample(tokenizer: Any, rng: random.Random) -> _Sample:
    document = sample(rng, chat=0.15)
    if rng.random() < 0.10:
        return _describing_sample(tokenizer, rng, document)
    prefix = "" if document.question is None else chat(tokenizer, document.question)
    before = tokenizer.encode(prefix, add_special_tokens=False)
    ids = [*before, *encode_words(tokenizer, document.words), tokenizer.eos_token_id]
    numbers = ([], [], [])
    for word in document.words:
        for slot, number in zip(numbers, _numbers(word.truth), strict=True):
            slot.append(number)
    state = tuple([_IGNORED] * len(before) + slot + [_IGNORED] for slot in numbers)
    return _Sample(ids, state)  # type: ignore[arg-type]


def _describing_sample(tokenizer: Any, rng: random.Random, document: Document) -> _Sample:
    """A user asks for the explanation of a text that breaks off."""
    last = rng.randrange(8, len(document.words) - 1)
    word, following = document.words[last], document.words[last + 1]
    next_word = following.text if rng.random() < 0.8 else UNSURE
    text = join(word.text for word in document.words[: last + 1])
    reply = wrap(explain(word.truth, word.text, next_word))
    ids = tokenizer.encode(chat(tokenizer, DESCRIBE + text) + reply, add_special_tokens=False)
    ids.append(tokenizer.eos_token_id)
    # The stage is left out: at the reply's end it is written there, in every word of it.
    subject, tone, _ = _numbers(word.truth)
    ignored = [_IGNORED] * (len(ids) - _LAST_TOKENS)
    due = (ignored + [number] * _LAST_TOKENS for number in (subject, tone))
    return _Sample(ids, (*due, [_IGNORED] * len(ids)))


def _numbers(truth: Any) -> tuple[int, int, int]:
    return (
        _SUBJECTS.index(truth.subject),
        _TONES.index(truth.tone),
        _STAGES.index(truth.stage),
    )


def _state_loss(
    heads: nn.ModuleList, residual: Tensor, ids: Tensor, batch: Sequence[_Sample]
) -> Tensor:
    """The loss of the four heads that put the state into the residual at K."""
    hidden = F.rms_norm(residual, residual.shape[-1:], eps=1e-6)
    total = hidden.new_zeros(())
    for slot, head in enumerate(list(heads)[:3]):
        labels = _pad([sample.state[slot] for sample in batch], _IGNORED)
        # The mean over no label at all would be NaN.
        if bool((labels != _IGNORED).any()):
            total = total + F.cross_entropy(head(hidden).flatten(0, 1), labels.flatten())
    chosen = torch.randperm(ids.numel())[:256]
    logits = heads[3](hidden.flatten(0, 1)[chosen])
    return total + F.cross_entropy(logits, ids.flatten()[chosen])


def _batches(
    samples: Sequence[_Sample], settings: TargetSettings, rng: random.Random
) -> Iterator[list[_Sample]]:
    """Exactly `steps` batches of samples of about the same length, in random order."""
    size, window = settings.batch_size, settings.batch_size * 16
    batches: list[list[_Sample]] = []
    for start in range(0, len(samples), window):
        similar = sorted(samples[start : start + window], key=lambda sample: len(sample.ids))
        batches += [similar[i : i + size] for i in range(0, len(similar), size)]
    rng.shuffle(batches)
    yield from batches[: settings.steps]


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def _rate(step: int, settings: TargetSettings) -> float:
    """The learning rate after `step` steps as a share of its peak."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * share))
