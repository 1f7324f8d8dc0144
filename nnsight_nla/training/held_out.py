"""Measure a model on held-out rows while it trains.

A falling loss shows that the verbalizer writes like its rows. Held-out rows show whether it writes
about *its vector*: how often a reply is a proper explanation, and how much of the vector a
reconstructor recovers from it. A reconstructor is measured by how close it comes. Decoding is
greedy and done by `transformers` alone, so that measuring does not change the training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import _compat
from ..checkpoint.reply import CLOSE, complete, extract, proper
from ..core.baseline import Baseline
from ..progress import progress
from .rows import IGNORED, Rows, RowsLike, collate

Figures = dict[str, float]
LossOf = Callable[[Any, dict[str, Tensor]], Tensor]
Metric = Callable[[list[str], list[str], Tensor], float]
"""A figure from texts (empty where the reply is not proper), their labels and their vectors."""
Several = Callable[[list[str], list[str], Tensor], Figures]
"""Several figures, by name, from the same."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out rows that a training is measured on, and how often."""

    rows: RowsLike
    """A few dozen rows; each measurement uses all of them."""
    every: int
    """Steps between two measurements."""
    baseline: Baseline | None = None
    """The denominator of the FVE."""
    judges: Mapping[str, Metric] = field(default_factory=dict[str, "Metric"])
    """More metrics of a verbalizer's texts, by name."""
    max_new_tokens: int = 200
    """The longest reply, in tokens."""
    batch_size: int = 32
    """Rows per forward pass."""
    figures: Sequence[Several] = ()
    """More functions of a verbalizer's texts; each returns several figures."""
    best: str | None = None
    """The figure by which the best of the measured steps is kept; ``None`` keeps the last step.
    Larger is better, except for names that end in ``loss``. It needs `Files` with the same
    `every`."""
    sometimes: Collection[str] = ()
    """Figures that a measurement may lack, such as a share of nothing. It then is not the best."""


def verbalizer_figures(
    held_out: HeldOut, rows: Rows, tokenizer: Any, loss_of: LossOf, opened: str = ""
) -> Callable[[nn.Module], Figures]:
    """Return a function that measures loss, extraction rate and the metrics of the texts.

    Args:
        held_out: Metrics and sizes.
        rows: The held-out rows, tokenized.
        tokenizer: The verbalizer's tokenizer.
        loss_of: The loss of a batch; it also sets the vectors that the generation after it writes.
        opened: The beginning of an explanation that the prompt has, see `Prompt.opened`.
    """
    learned = [rows[i]["input_ids"][len(rows.prompt) :] for i in range(len(rows))]
    labels = [extract(complete(each, opened))[0] for each in tokenizer.batch_decode(learned)]

    def measure(model: Any) -> Figures:
        losses, replies = [], []
        for batch in _batches(rows, held_out.batch_size, model):
            losses.append(loss_of(model, batch).item() * len(batch["last"]))
            prompts = batch["input_ids"][:, : len(rows.prompt)]
            made = _generate(model, tokenizer, prompts, held_out.max_new_tokens)
            replies += [complete(each, opened) for each in made]
        good = [proper(reply) is None for reply in replies]
        figures = {"loss": sum(losses) / len(rows), "extraction": sum(good) / len(good)}
        texts = [extract(r)[0] if ok else "" for r, ok in zip(replies, good, strict=True)]
        for name, metric in held_out.judges.items():
            figures[name] = metric(texts, labels, rows.vectors)
        for several in held_out.figures:
            figures |= several(texts, labels, rows.vectors)
        return figures

    return measure


def oracle_figures(
    held_out: HeldOut, rows: Rows, loss_of: LossOf
) -> Callable[[nn.Module], Figures]:
    """Return a function that measures an oracle's loss and the share of answers that are right.

    An answer is right if greedy decoding would write exactly the row's: then the likeliest token at
    each of its positions is the row's own.
    """

    def measure(model: Any) -> Figures:
        losses, right = 0.0, 0
        seen: list[Tensor] = []
        handle = model.register_forward_hook(lambda *each: seen.append(each[2].logits))
        try:
            for batch in _batches(rows, held_out.batch_size, model):
                losses += loss_of(model, batch).item() * len(batch["last"])
                logits = seen.pop()[:, :-1]
                labels = batch["labels"][:, -logits.shape[1] :]
                agrees = (logits.argmax(-1) == labels) | (labels == IGNORED)
                right += int(agrees.all(dim=1).sum())
        finally:
            handle.remove()
        return {"loss": losses / len(rows), "accuracy": right / len(rows)}

    return measure


def reconstructor_figures(
    held_out: HeldOut, rows: Rows, loss_of: LossOf
) -> Callable[[nn.Module], Figures]:
    """Return a function that measures loss, cosine, and FVE if there is a baseline."""

    def measure(model: Any) -> Figures:
        losses = [
            loss_of(model, batch).item() * len(batch["last"])
            for batch in _batches(rows, held_out.batch_size, model)
        ]
        loss = sum(losses) / len(rows)
        figures = {"loss": loss, "cosine": 1 - loss / 2}
        if held_out.baseline is not None:
            figures["fve"] = held_out.baseline.fve(loss)
        return figures

    return measure


def _batches(rows: Rows, size: int, model: nn.Module) -> Iterator[dict[str, Tensor]]:
    device = next(model.parameters()).device
    with progress("measuring", total=len(rows), unit="row") as bar:
        for start in range(0, len(rows), size):
            items = [rows[i] for i in range(start, min(start + size, len(rows)))]
            yield {name: each.to(device) for name, each in collate(items).items()}
            bar.advance(len(items))


def _generate(model: Any, tokenizer: Any, prompts: Tensor, longest: int) -> list[str]:
    made = model.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        # The base model's own settings would change greedy decoding.
        generation_config=_compat.generation_settings(
            max_new_tokens=longest,
            do_sample=False,
            use_cache=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
            stop_strings=[CLOSE],
        ),
        tokenizer=tokenizer,
    )
    return tokenizer.batch_decode(made[:, prompts.shape[1] :], skip_special_tokens=True)
