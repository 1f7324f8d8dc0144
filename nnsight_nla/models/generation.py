"""Generate greedily, whatever a checkpoint's ``generation_config.json`` says.

Of a model's own settings only the ids that end a reply are used; its penalties, its minimal
lengths and the like would make a reply another one than the greedy one::

    model.generate(ids, generation_config=greedy(model, model.tokenizer, 200))
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _compat
from .hosts import describe, module_of
from .loading import token_ids

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel
    from transformers import GenerationConfig


def reply_ends(model: TransformersModel, tokenizer: Any) -> list[int]:
    """Return the ids that end a reply, from the tokenizer and the model's settings."""
    own = getattr(module_of(model), "generation_config", None)
    where = f"The generation settings of {describe(model)}"
    listed = token_ids(getattr(own, "eos_token_id", None), "eos_token_id", where)
    return sorted({*listed, tokenizer.eos_token_id} - {None})


def greedy(model: TransformersModel, tokenizer: Any, new_tokens: int) -> GenerationConfig:
    """Return the settings of a greedy generation.

    Args:
        model: Generates.
        tokenizer: Its tokenizer.
        new_tokens: The longest reply, in tokens.
    """
    ends, pad = reply_ends(model, tokenizer), tokenizer.pad_token_id
    return _compat.generation_settings(
        max_new_tokens=new_tokens,
        do_sample=False,
        # A vector is written in the prefill only; later steps must not repeat the prompt.
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad if pad is not None else (ends or [0])[0],
    )
