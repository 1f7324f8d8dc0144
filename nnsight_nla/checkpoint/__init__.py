"""Describe how a verbalizer was trained: its sidecar, its presets, its prompt and its replies."""

from .checkpoint import Checkpoint
from .prompt import Prompt

__all__ = ["Checkpoint", "Prompt"]
