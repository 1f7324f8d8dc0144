"""What is built in about published checkpoints, for when their sidecar is absent or incomplete.

A repository's own sidecar wins field by field; a preset steps in where there is none (no network,
or a repository that ships weights only) and for what no sidecar says, the injection. Every entry
holds what the repositories themselves state, as quoted in public code; a field that could not be
established is left out, so that it is computed from the live tokenizer or stays unknown.

>>> sorted(PRESETS)[:2]
['ceselder/nanonla-l24-av-qwen3-8b', 'kitft/Llama-3.3-70B-NLA-L53-av']
>>> PRESETS["kitft/nla-gemma3-12b-L32-av"]["injection"].scale
80000.0
"""

from __future__ import annotations

from typing import Any

from ..core.baseline import PUBLISHED, Baseline
from ..core.injection import Injection

# The templates of the published checkpoints (kitft/natural_language_autoencoders, ceselder/nanoNLA;
# Apache-2.0): what their weights were trained on, to the letter.
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
# No public source quotes this one's neighbours and suffix.
_LLAMA: dict[str, Any] = {"marker": "㎡", "marker_id": 105565}


def _entry(
    base: str, layer: int, d_model: int, injection: Injection, tokens: dict[str, Any]
) -> dict[str, Any]:
    return {
        "layer": layer,
        "d_model": d_model,
        "template": AV_TEMPLATE,
        "ar_template": AR_TEMPLATE,
        "injection": injection,
        "base_model": base,
        "baseline": Baseline.published(base) if base in PUBLISHED else None,
        **tokens,
    }


def _replace(scale: float) -> Injection:
    return Injection("replace", "embedding", None, scale)


PRESETS: dict[str, dict[str, Any]] = {
    "ceselder/nanonla-l24-av-qwen3-8b": _entry(
        "Qwen/Qwen3-8B", 24, 4096, Injection("add", "block", 1), _QWEN
    ),
    "kitft/nla-qwen2.5-7b-L20-av": _entry(
        "Qwen/Qwen2.5-7B-Instruct", 20, 3584, _replace(150.0), _QWEN
    ),
    "kitft/nla-gemma3-12b-L32-av": _entry(
        "google/gemma-3-12b-it", 32, 3840, _replace(80000.0), _GEMMA
    ),
    "kitft/nla-gemma3-27b-L41-av": _entry(
        "google/gemma-3-27b-it", 41, 5376, _replace(60000.0), _GEMMA
    ),
    "kitft/Llama-3.3-70B-NLA-L53-av": _entry(
        "meta-llama/Llama-3.3-70B-Instruct", 53, 8192, _replace(30.0), _LLAMA
    ),
}
"""Hub id to the fields of a `Checkpoint`."""
