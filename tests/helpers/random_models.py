"""Small random verbalizers of any architecture, with the tiny pair's tokenizer and sidecar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import tiny

SHAPE: dict[str, Any] = {
    "vocab_size": 1496, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 5,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def save(folder: Path, kind: str, **options: Any) -> Path:
    """Save a model of a type of transformers whose texts differ from vector to vector.

    Args:
        folder: Where to.
        kind: The model type.
        options: What its configuration has besides `SHAPE`.
    """
    config = AutoConfig.for_model(kind, **{**SHAPE, **options})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator(device="cpu").manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            # Norms of random scale, so that a tied head does not repeat the last token for ever.
            low, high = (-0.2, 0.2) if weight.ndim > 1 else (0.0, 3.0)
            weight.uniform_(low, high, generator=generator)
    model.save_pretrained(folder)
    av = tiny.paths()["av"]
    AutoTokenizer.from_pretrained(av).save_pretrained(folder)
    sidecar = yaml.safe_load((Path(av) / "nla_meta.yaml").read_text("utf-8"))
    sidecar["extraction"]["base_model"] = str(folder)
    (folder / "nla_meta.yaml").write_text(yaml.safe_dump(sidecar, allow_unicode=True), "utf-8")
    return folder
