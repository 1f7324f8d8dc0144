"""Check that a checkpoint's prompt can be rendered, before any weights are loaded.

This needs only the sidecar, the configuration and the tokenizer::

    finding = check("path/to/av")           # None if the prompt can be rendered
    print(finding.setting, finding.note)    # the first setting that fails, and why
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.prompt import Prompt
from ..errors import CheckpointError
from ..models.loading import at_depth, load_tokenizer
from .report import Finding
from .variants import token_ids


def check(av: str | Path, checkpoint: Checkpoint | None = None) -> Finding | None:
    """Return the first setting that keeps a checkpoint's prompt from being rendered.

    Args:
        av: The verbalizer, a folder or a Hub id.
        checkpoint: Used instead of the sidecar, if given.

    Returns:
        A finding with the verdict ``fails``; ``None`` if the prompt can be rendered.
    """
    setting = "sidecar"
    try:
        found = Checkpoint.load(av) if checkpoint is None else checkpoint
        setting = "template"
        found = at_depth(av, found, {})
        setting = "tokenizer"
        tokenizer = load_tokenizer(av, found)
    except CheckpointError as error:
        return Finding(setting, "fails", note=str(error))
    try:
        Prompt.render(found, tokenizer)
    except CheckpointError as error:
        return _unrendered(found, tokenizer, error)
    return None


def _unrendered(checkpoint: Checkpoint, tokenizer: Any, error: CheckpointError) -> Finding:
    """Find out whether the tokenizer, the template or the marker is at fault."""
    ids = token_ids(tokenizer, str(checkpoint.marker))
    if len(ids) != 1:
        return Finding("tokenizer", "fails", note=str(error))
    live = replace(checkpoint, marker_id=ids[0], left_id=None, right_id=None)
    try:
        prompt = Prompt.render(live, tokenizer)
    except CheckpointError:
        return Finding("template", "fails", note=str(error))
    says = f"id {ids[0]} between {prompt.left_id} and {prompt.right_id}"
    return Finding("marker", "fails", best=says, note=f"{error} The live tokenizer says {says}.")
