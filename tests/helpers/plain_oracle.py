"""The reference for oracles: plain hooks on a plain transformers model, nothing of ours in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def prompt(tokenizer: Any, question: str, slots: int, layer: int) -> tuple[list[int], list[int]]:
    """The ids of the published prompt in Qwen's chat markup, with the marker "?", and its slots."""
    before = tokenizer.encode(f"<|im_start|>user\nLayer: {layer}\n", add_special_tokens=False)
    after = f" \n{question}<|im_end|>\n<|im_start|>assistant\n"
    ids = [*before, *[tokenizer.convert_tokens_to_ids("?")] * slots]
    ids += tokenizer.encode(after, add_special_tokens=False)
    return ids, list(range(len(before), len(before) + slots))


@torch.no_grad()
def first_logits(
    model: Any,
    ids: list[int],
    sites: list[int],
    vectors: Tensor | None,
    *,
    scale: float = 1.0,
) -> Tensor:
    """The logits after `ids`, with each vector added at its site, norm-matched."""

    def write(module: Any, args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        for site, vector in zip(sites, vectors if vectors is not None else [], strict=False):
            here = hidden[0, site]
            hidden[0, site] = here + scale * here.norm() * vector / vector.norm()
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = model.model.layers[1].register_forward_hook(write)
    try:
        return model(input_ids=torch.tensor([ids])).logits[0, -1].float()
    finally:
        handle.remove()


def answer(
    model: Any,
    tokenizer: Any,
    question: str,
    vectors: Tensor | None,
    *,
    layer: int,
    slots: int,
    new_tokens: int,
    scale: float = 1.0,
) -> tuple[str, float]:
    """The greedy answer, by a full forward per token, and the least margin of its choices."""
    ids, sites = prompt(tokenizer, question, slots, layer)
    said: list[int] = []
    margin = float("inf")
    while len(said) < new_tokens:
        best = first_logits(model, [*ids, *said], sites, vectors, scale=scale).topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        token = int(best.indices[0])
        if token == tokenizer.eos_token_id:
            break
        said.append(token)
    return tokenizer.decode(said, skip_special_tokens=True).strip(), margin
