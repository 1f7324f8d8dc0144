"""A judge on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ... import _compat
from ...models import weights
from ...models.generation import greedy
from ...progress import progress
from .judge import JudgeError


class LocalJudge:
    """A chat model on this machine, asked greedily, in batches."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        batch_size: int = 8,
        max_new_tokens: int = 400,
    ) -> None:
        """Take a model.

        Args:
            model: An nnsight ``TransformersModel``, or a transformers model.
            tokenizer: Its tokenizer; an nnsight model has one.
            batch_size: The number of prompts in one batch.
            max_new_tokens: The most tokens of an answer.

        Raises:
            JudgeError: There is no tokenizer, or it has no chat template.
        """
        found = tokenizer if tokenizer is not None else getattr(model, "tokenizer", None)
        if found is None:
            raise JudgeError(
                f"Got a {type(model).__name__} without its tokenizer. Pass "
                "LocalJudge(model, tokenizer), or an nnsight TransformersModel, which has one."
            )
        if not getattr(found, "chat_template", None):
            raise JudgeError(
                "The tokenizer has no chat template, so the model does not answer questions. Pass "
                "a model that was trained to follow instructions."
            )
        self.model, self.tokenizer = model, found
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Return the answers to prompts."""
        from nnsight import TransformersModel

        if isinstance(self.model, TransformersModel):
            weights.load(self.model, "judge")
        rows = [self._tokenize(prompt) for prompt in prompts]
        # Prompts of like length share a batch, which then has little padding.
        order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
        answers: dict[int, str] = {}
        with progress("judging", total=len(rows), unit="answer") as bar:
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                made = self._generate([rows[n] for n in batch])
                answers.update(zip(batch, made, strict=True))
                bar.advance(len(batch))
        return [answers[n] for n in range(len(rows))]

    def _tokenize(self, prompt: str) -> list[int]:
        # A quoted text must not end the user's turn.
        special = (t.content for t in self.tokenizer.added_tokens_decoder.values() if t.special)
        for token in sorted(special, key=len, reverse=True):
            prompt = prompt.replace(token, f"{token[:1]} {token[1:]}")
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,  # Templates of models that cannot reason ignore it.
        )
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _generate(self, rows: Sequence[list[int]]) -> list[str]:
        module: Any = _compat.module_of(self.model)
        settings = greedy(self.model, self.tokenizer, self.max_new_tokens)
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        pads = [[settings.pad_token_id] * n for n in padding]
        filled = [pad + row for pad, row in zip(pads, rows, strict=True)]
        ids = torch.tensor(filled, dtype=torch.long, device="cpu")
        real = [[0] * n + [1] * (longest - n) for n in padding]
        mask = torch.tensor(real, dtype=torch.long, device="cpu")
        with torch.no_grad():
            made = module.generate(
                input_ids=ids.to(module.device),
                attention_mask=mask.to(module.device),
                generation_config=settings,
            )
        return self.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
