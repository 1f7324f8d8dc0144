"""What a verbalizer was trained with: its sidecar, its presets and its prompt."""

from .checkpoint import Checkpoint
from .prompt import Prompt

__all__ = ["Checkpoint", "Prompt"]
