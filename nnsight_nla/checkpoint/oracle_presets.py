"""Built-in descriptions of the published activation oracles (Karvonen et al. 2025).

An oracle is a LoRA adapter on the target's own weights. Its repository does not say how its prompt
is built, so each value here is what the authors' code does: the prompt (`ORACLE_TEMPLATE`) in the
model's chat template with thinking off, norm-matched addition at the output of block 1, and
training on the residuals at 25%, 50% and 75% of the depth::

    nla = NLA.on(model, av="adamkarvonen/checkpoints_latentqa_cls_past_lens_addition_Qwen3-8B")

>>> fields = ORACLE_FIELDS["adamkarvonen/checkpoints_latentqa_cls_past_lens_addition_Qwen3-8B"]
>>> fields["layers"], fields["layer"]
((9, 18, 27), 18)
"""

from __future__ import annotations

from typing import Any

from ..core.baseline import PUBLISHED
from ..core.injection import Injection

ORACLE_TEMPLATE = "Layer: {layer}\n{injection_char} \n{question}"
"""The user message of the published oracles (adamkarvonen/activation_oracles)."""
ORACLE_MARKER = " ?"
"""The token at which they read their vectors, one for each vector."""
_OWNER = "adamkarvonen/checkpoints_"
_PERCENTS = (25, 50, 75)


def trained_layers(blocks: int) -> tuple[int, ...]:
    """Return the blocks that a published oracle was trained on, by the target's number of blocks.

    >>> trained_layers(42)
    (10, 21, 31)
    """
    return tuple(int(blocks * (percent / 100)) for percent in _PERCENTS)


ORACLE_FIELDS: dict[str, dict[str, Any]] = {
    _OWNER + name: {
        "layer": trained_layers(blocks)[1],
        "layers": trained_layers(blocks),
        "d_model": d_model,
        "template": ORACLE_TEMPLATE,
        "marker": ORACLE_MARKER,
        "thinking": False,
        "injection": Injection("add"),
        "base_model": base,
        "baseline": PUBLISHED.get(base),
    }
    for name, base, blocks, d_model in (
        ("cls_latentqa_past_lens_Qwen3-1_7B", "Qwen/Qwen3-1.7B", 28, 2048),
        ("latentqa_cls_past_lens_Qwen3-4B", "Qwen/Qwen3-4B", 36, 2560),
        ("latentqa_cls_past_lens_addition_Qwen3-8B", "Qwen/Qwen3-8B", 36, 4096),
        ("latentqa_cls_past_lens_Qwen3-14B", "Qwen/Qwen3-14B", 40, 5120),
        ("cls_latentqa_past_lens_Qwen3-32B", "Qwen/Qwen3-32B", 64, 5120),
        ("latentqa_cls_past_lens_addition_gemma-2-9b-it", "google/gemma-2-9b-it", 42, 3584),
        ("latentqa_cls_past_lens_gemma-2-27b-it", "google/gemma-2-27b-it", 46, 4608),
        ("cls_latentqa_past_lens_gemma-3-1b-it", "google/gemma-3-1b-it", 26, 1152),
        ("latentqa_cls_past_lens_gemma-3-27b-it", "google/gemma-3-27b-it", 62, 5376),
        (
            "cls_latentqa_past_lens_Llama-3_2-1B-Instruct",
            "meta-llama/Llama-3.2-1B-Instruct",
            16,
            2048,
        ),
        (
            "latentqa_cls_past_lens_Llama-3_1-8B-Instruct",
            "meta-llama/Llama-3.1-8B-Instruct",
            32,
            4096,
        ),
        (
            "act_cls_latentqa_pretrain_mix_adding_Llama-3_3-70B-Instruct",
            "meta-llama/Llama-3.3-70B-Instruct",
            80,
            8192,
        ),
    )
}
"""Hub id to the fields of its `Checkpoint`."""
