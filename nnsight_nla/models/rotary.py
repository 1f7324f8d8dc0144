"""Find the length at which a model's rotary frequencies change.

With ``longrope`` (Phi-3), a text that is longer than the original context has other frequencies
from its first token on. So nothing that was computed for a shorter text can be continued: neither a
shared beginning of prompts nor a reply, for which transformers then computes the whole text again,
without what was written into the prompt.
"""

from __future__ import annotations

from typing import Any


def length_of_change(config: Any) -> int | None:
    """Return the most tokens of a text with the first frequencies; ``None`` if they never change.

    Args:
        config: The configuration of the language model.
    """
    given: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    # Some models have parameters for each type of layer.
    each = [one for one in (given, *given.values()) if isinstance(one, dict)]
    lengths = [
        one.get("original_max_position_embeddings")
        or getattr(config, "original_max_position_embeddings", None)
        for one in each
        if one.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in lengths if length), default=None)
