"""What a vLLM process has to know of the verbalizer: how and where its vector is written.

It travels as one JSON string in the model's configuration, by vLLM's ``hf_overrides``::

    settings = Settings.of(checkpoint, prompt)
    LLM(path, hf_overrides=settings.overrides("Qwen3ForCausalLM"))
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...core.injection import Injection
from ...errors import VerbalizationError
from .plugin import PREFIX

if TYPE_CHECKING:
    from ...checkpoint.checkpoint import Checkpoint
    from ...checkpoint.prompt import Prompt

FIELD = "nla_settings"
"""The field of the model's configuration."""
_WRITTEN = ("add", "replace")


@dataclass(frozen=True)
class Settings:
    """How a vector is written."""

    injection: Injection
    """The operation, its site and its scale."""
    marker_id: int
    """The token id of the marker, whose residual is written."""
    slots: int | None
    """The number of markers in a prompt; ``None`` for an oracle, whose questions differ in it."""

    @staticmethod
    def of(checkpoint: Checkpoint, prompt: Prompt) -> Settings:
        """Return the settings of a checkpoint.

        Raises:
            VerbalizationError: vLLM's processes do not know its operation.
        """
        injection = checkpoint.injection
        if injection.operation not in _WRITTEN:
            raise VerbalizationError(
                f"engine='vllm' writes vectors by the operations {' and '.join(_WRITTEN)}, not by "
                f"{injection.operation!r}, which vLLM's processes do not know. Use engine='fast'."
            )
        slots = None if checkpoint.asks else len(prompt.sites)
        return Settings(injection, prompt.ids[prompt.marker_position], slots)

    @staticmethod
    def read(text: str) -> Settings:
        """Read what `text` wrote."""
        fields = json.loads(text)
        return Settings(**{**fields, "injection": Injection(**fields["injection"])})

    @property
    def text(self) -> str:
        """The settings as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def overrides(self, architecture: str) -> dict[str, Any]:
        """Return the ``hf_overrides`` for a model of this architecture."""
        return {"architectures": [f"{PREFIX}{architecture}"], FIELD: self.text}
