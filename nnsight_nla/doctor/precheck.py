"""What of a checkpoint can be rendered at all, before any weights: sidecar, tokenizer, marker.

finding = check("path/to/av")
print(finding.setting, finding.note)    # None where all of it can
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
    """What of a checkpoint cannot even be rendered, before any weights: the first such setting.

    Args:
        av: The verbalizer, a folder or a Hub id.
        checkpoint: In place of the sidecar's.

    Returns:
        ``None`` where all of it can.
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
    """Whether it is the marker or something else that keeps a prompt from being rendered."""
    ids = token_ids(tokenizer, checkpoint.marker)
    if len(ids) != 1:
        return Finding("tokenizer", "fails", note=str(error))
    live = replace(checkpoint, marker_id=ids[0], left_id=None, right_id=None)
    try:
        prompt = Prompt.render(live, tokenizer)
    except CheckpointError:
        return Finding("template", "fails", note=str(error))
    says = f"id {ids[0]} between {prompt.left_id} and {prompt.right_id}"
    return Finding("marker", "fails", best=says, note=f"{error} The live tokenizer says {says}.")
