"""Make the table of the published checkpoints: their layer, and the memory they need.

    python -m tutorials.recipes.published

Parameters are counted on the meta device, in the language models that these configurations make:
no weights are needed.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from nnsight_nla.checkpoint.presets import PRESET_FIELDS

BYTES = 2
"""Of a weight in bfloat16."""

TARGETS: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-8B": {
        "kind": "Qwen3Config", "num_hidden_layers": 36, "hidden_size": 4096,
        "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
    },
    "Qwen/Qwen2.5-7B-Instruct": {
        "kind": "Qwen2Config", "num_hidden_layers": 28, "hidden_size": 3584,
        "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
        "vocab_size": 152064, "tie_word_embeddings": False,
    },
    "google/gemma-3-12b-it": {
        "kind": "Gemma3TextConfig", "num_hidden_layers": 48, "hidden_size": 3840,
        "intermediate_size": 15360, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 256, "vocab_size": 262208,
    },
    "google/gemma-3-27b-it": {
        "kind": "Gemma3TextConfig", "num_hidden_layers": 62, "hidden_size": 5376,
        "intermediate_size": 21504, "num_attention_heads": 32, "num_key_value_heads": 16,
        "head_dim": 128, "vocab_size": 262208,
    },
    "meta-llama/Llama-3.3-70B-Instruct": {
        "kind": "LlamaConfig", "num_hidden_layers": 80, "hidden_size": 8192,
        "intermediate_size": 28672, "num_attention_heads": 64, "num_key_value_heads": 8,
        "vocab_size": 128256, "tie_word_embeddings": False,
    },
}  # fmt: skip
"""The published configurations of the targets: the entries that set the number of weights."""
RUN = {
    "Qwen/Qwen3-8B": "prompt, vocabulary, shapes",
    "Qwen/Qwen2.5-7B-Instruct": "prompt, vocabulary",
}
"""What was tested without the weights (tests/checkpoint/test_preset_qwen.py)."""


def gigabytes(target: str) -> float:
    """Return the memory of a target's weights in bfloat16, in GB."""
    options = dict(TARGETS[target])
    config = getattr(transformers, options.pop("kind"))(**options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(each.numel() for each in model.parameters()) * BYTES / 1e9


def table() -> str:
    """Return the table, in Markdown."""
    lines = [
        "| checkpoint | target | K | GB, target + AV | tested without weights |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, fields in PRESET_FIELDS.items():
        target = fields["base_model"]
        memory = round(2 * gigabytes(target))
        link = f"[{name}](https://huggingface.co/{name})"
        run = RUN.get(target, "small random model")
        lines.append(f"| {link} | {target.split('/')[1]} | {fields['layer']} | {memory} | {run} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(f"{table()}\n")
