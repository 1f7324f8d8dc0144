"""Built-in descriptions of published checkpoints, for a sidecar that is absent or incomplete.

A field of the repository's own sidecar always wins. A preset is used if there is no sidecar (no
network, or a repository with weights only) and for what no sidecar names: the injection. Each value
is what the repositories themselves state, as quoted in public code. A field that could not be
established is left out, so that it is computed from the live tokenizer or remains unknown.

>>> sorted(PRESET_FIELDS)[:2]
['ceselder/nanonla-l24-av-qwen3-8b', 'kitft/Llama-3.3-70B-NLA-L53-av']
>>> PRESET_FIELDS["kitft/nla-gemma3-12b-L32-av"]["injection"].scale
80000.0
"""

from __future__ import annotations

from typing import Any

from ..core.baseline import PUBLISHED
from ..core.injection import Injection

# The templates of the published checkpoints (kitft/natural_language_autoencoders, ceselder/nanoNLA;
# Apache-2.0), exactly as their weights were trained on them.
AV_TEMPLATE = (
    "You are a meticulous AI researcher conducting an important investigation into activation "
    "vectors from a language model. Your overall task is to describe the semantic content of that "
    "activation vector.\n\nWe will pass the vector enclosed in <concept> tags into your context. "
    "You must then produce an explanation for the vector, enclosed within <explanation> tags. The "
    "explanation consists of 2-3 text snippets describing that vector.\n\nHere is the vector:\n\n"
    "<concept>{injection_char}</concept>\n\nPlease provide an explanation."
)
AR_TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"
_QWEN: dict[str, Any] = {
    "marker": "㈎",
    "marker_id": 149705,
    "left_id": 29,
    "right_id": 522,
    "ar_suffix_ids": (1318, 29, 366, 1708, 29),
}
_GEMMA: dict[str, Any] = {
    "marker": "㈜",
    "marker_id": 246566,
    "left_id": 236813,
    "right_id": 954,
    "ar_suffix_ids": (1005, 236813, 655, 6011, 236813),
}
_LLAMA_70B = "meta-llama/Llama-3.3-70B-Instruct"
# No public source states the neighbours and the suffix of this one.
_LLAMA: dict[str, Any] = {"marker": "㎡", "marker_id": 105565}


PRESET_FIELDS: dict[str, dict[str, Any]] = {
    name: {
        "layer": layer,
        "d_model": d_model,
        "template": AV_TEMPLATE,
        "ar_template": AR_TEMPLATE,
        "injection": Injection("replace", "embedding", None, scale) if scale else Injection("add"),
        "base_model": base,
        "baseline": PUBLISHED.get(base),
        **tokens,
    }
    for name, base, layer, d_model, scale, tokens in (
        ("ceselder/nanonla-l24-av-qwen3-8b", "Qwen/Qwen3-8B", 24, 4096, None, _QWEN),
        ("kitft/nla-qwen2.5-7b-L20-av", "Qwen/Qwen2.5-7B-Instruct", 20, 3584, 150.0, _QWEN),
        ("kitft/nla-gemma3-12b-L32-av", "google/gemma-3-12b-it", 32, 3840, 80000.0, _GEMMA),
        ("kitft/nla-gemma3-27b-L41-av", "google/gemma-3-27b-it", 41, 5376, 60000.0, _GEMMA),
        ("kitft/Llama-3.3-70B-NLA-L53-av", _LLAMA_70B, 53, 8192, 30.0, _LLAMA),
    )
}
"""Hub id to the fields of its `Checkpoint`; without a scale, the injection is an addition."""
