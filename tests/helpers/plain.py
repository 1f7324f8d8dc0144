"""The reference: a plain PyTorch hook on the plain transformers model, nothing of ours in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer


@dataclass
class Plain:
    """What one greedy run wrote, and how close its choices were."""

    tokens: list[int]
    """The generated ids, up to and without the closing tag's last token."""
    margins: list[float]
    """Best minus second-best logit at each step."""


def load(folder: str | Path, attention: str | None = None):
    """The model, the tokenizer and the prompt's ids, straight from the folder."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sidecar = yaml.safe_load((Path(folder) / "nla_meta.yaml").read_text("utf-8"))
    marker = sidecar["tokens"]["injection_char"]
    content = sidecar["prompt_templates"]["av"].replace("{injection_char}", marker)
    text = f"<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"
    return _model(folder, attention), tokenizer, tokenizer.encode(text, add_special_tokens=False)


def _model(folder: str | Path, attention: str | None):
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=attention
    ).eval()


def residual(folder: str | Path, text: str, layer: int, attention: str | None = None) -> Tensor:
    """``[seq, d_model]``: the output of block `layer`, from ``output_hidden_states``."""
    model = _model(folder, attention)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0]


@torch.no_grad()
def verbalize(
    folder: str | Path,
    vectors: Tensor,
    new_tokens: int,
    layer: int = 1,
    attention: str | None = None,
) -> list[Plain]:
    """Norm-matched addition at the marker, one vector at a time, greedily."""
    model, tokenizer, prompt = load(folder, attention)
    marker = tokenizer.convert_tokens_to_ids("㈎")
    position = prompt.index(marker)
    end = tokenizer.eos_token_id
    results: list[Plain] = []
    for vector in vectors:
        done = False

        def write(module, args, output, vector=vector):
            nonlocal done
            if done:
                return None
            done = True
            here = output[:, position]
            output = output.clone()
            output[:, position] = here + here.norm() * vector / vector.norm()
            return output

        handle = model.model.layers[layer].register_forward_hook(write)
        tokens: list[int] = []
        margins: list[float] = []
        cache, feed = None, torch.tensor([prompt])
        for _ in range(new_tokens):
            out = model(input_ids=feed, past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            best = out.logits[0, -1].topk(2)
            tokens.append(int(best.indices[0]))
            margins.append(float(best.values[0] - best.values[1]))
            feed = best.indices[:1].view(1, 1)
            if tokens[-1] == end or "</explanation>" in tokenizer.decode(tokens[-12:]):
                break
        handle.remove()
        results.append(Plain(tokens, margins))
    return results
