"""Find the blocks of a language model by structure.

This module travels with a remote request as source, so it imports nothing from this package.
"""

from __future__ import annotations

from typing import Any


def find_blocks(module: Any) -> tuple[str, Any]:
    """Return the path and the list of a language model's blocks.

    The list is the first `ModuleList` with as many entries as the configuration has layers.

    Raises:
        LookupError: The model has no such list.
    """
    depth = module.config.get_text_config().num_hidden_layers
    for path, each in module.named_modules():
        is_list = type(each).__name__ == "ModuleList"
        if is_list and len(each) == depth and "vision" not in path:
            return path, each
    raise LookupError(f"no list of {depth} blocks in {type(module).__name__}")
