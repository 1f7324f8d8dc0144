"""Small targets of four families: random weights, and a tokenizer of the family's own class."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
)

TEXT = ["What a lovely day! People in Paris speak French.", "The cow lives in the farm."]
CONTEXT = 48
CHAT = (
    "{{ bos_token or '' }}{% for m in messages %}{{ m.role }}: {{ m.content }}"
    "{% if not (loop.last and continue_final_message) %} . {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
}
GPT2: dict[str, Any] = {
    "vocab_size": 400, "n_embd": 128, "n_layer": 5, "n_head": 4, "n_positions": CONTEXT,
}  # fmt: skip
FAMILIES: dict[str, tuple[Any, Any, Any, list[str], dict[str, Any]]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config(**GPT2), GPT2Tokenizer, ["<|endoftext|>"], {}),
    "llama": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE),
        LlamaTokenizer,
        ["<unk>", "<s>", "</s>"],
        {"add_bos_token": True},
    ),
    "qwen3": (
        Qwen3ForCausalLM,
        Qwen3Config(**SHAPE),
        Qwen2Tokenizer,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "gemma": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SHAPE, sliding_window=64),
        GemmaTokenizer,
        ["<pad>", "<eos>", "<bos>", "<unk>"],
        {"add_bos_token": True},
    ),
}


def save(folder: Path, family: str, *, pad_is_eos: bool) -> Path:
    """Save a model with weights from U(-1, 1) / 4, and its tokenizer."""
    kind, config, tokenizer, special, options = FAMILIES[family]
    built = tokenizer(**_trained(special, bytes_=family in ("gpt2", "qwen3")), **options)
    if pad_is_eos:
        built.pad_token = built.eos_token
    built.chat_template = CHAT
    built.save_pretrained(folder)
    config = copy.deepcopy(config)
    config.pad_token_id, config.eos_token_id = built.pad_token_id, built.eos_token_id
    config.bos_token_id = built.bos_token_id
    torch.manual_seed(0)
    model = kind(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.uniform_(-0.25, 0.25)
    model.save_pretrained(folder)
    return folder


def boot(folder: Path) -> Any:
    """The saved model as a `TransformerBridge`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(str(folder))


def _trained(special: list[str], *, bytes_: bool) -> dict[str, Any]:
    built = Tokenizer(models.BPE(unk_token=None if bytes_ else "<unk>"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False) if bytes_ else None
    built.pre_tokenizer = words or pre_tokenizers.Metaspace()
    alphabet = pre_tokenizers.ByteLevel.alphabet() if bytes_ else []
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    built.train_from_iterator(TEXT * 3, trainer)
    found = json.loads(built.to_str())["model"]
    return {"vocab": found["vocab"], "merges": [tuple(pair) for pair in found["merges"]]}
