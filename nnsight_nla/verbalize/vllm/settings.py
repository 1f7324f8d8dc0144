"""What a vLLM process has to know of the verbalizer: how and where its vector is written.

It travels as one JSON string in the model's configuration, by vLLM's ``hf_overrides``::

    settings = Settings.of(checkpoint, prompt, name)
    LLM(path, hf_overrides=settings.overrides("Qwen3ForCausalLM"))
"""

from __future__ import annotations

import json
from collections.abc import Mapping
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
    """How a vector is written, and whose vectors they are."""

    injection: Injection
    """The operation, its site and its scale."""
    marker_id: int
    """The token id of the marker, whose residual is written."""
    slots: int | None
    """The number of markers in a prompt; ``None`` for an oracle, whose questions differ in it."""
    name: str = ""
    """The verbalizer: its path or id, as it was opened."""
    base_model: str | None = None
    """The name of its target, if known."""
    layers: tuple[int, ...] = ()
    """The blocks whose residuals it was trained on."""
    sidecar_hash: str | None = None
    """SHA-256 of its sidecar, if it has one."""

    @staticmethod
    def of(checkpoint: Checkpoint, prompt: Prompt, name: str = "") -> Settings:
        """Return the settings of a checkpoint.

        Args:
            checkpoint: The checkpoint.
            prompt: Its prompt.
            name: The verbalizer's path or id.

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
        marker, layers = prompt.ids[prompt.marker_position], checkpoint.layers
        return Settings(
            injection, marker, slots, name, checkpoint.base_model, layers or (checkpoint.layer,),
            checkpoint.sidecar_hash,
        )  # fmt: skip

    @staticmethod
    def read(text: str) -> Settings:
        """Read what `text` wrote."""
        fields = json.loads(text)
        injection, layers = Injection(**fields["injection"]), tuple(fields["layers"])
        return Settings(**{**fields, "injection": injection, "layers": layers})

    def different(self, other: Settings) -> Mapping[str, tuple[Any, Any]]:
        """Return the fields in which two verbalizers differ, as far as both know them."""
        ours, theirs = vars(self), vars(other)
        return {
            field: (ours[field], theirs[field])
            for field in ("injection", "marker_id", "slots", "base_model", "layers")
            if ours[field] != theirs[field]
            and (field == "slots" or None not in (ours[field], theirs[field]))
        }

    @property
    def text(self) -> str:
        """The settings as JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    def overrides(self, architecture: str) -> dict[str, Any]:
        """Return the ``hf_overrides`` for a model of this architecture."""
        return {"architectures": [f"{PREFIX}{architecture}"], FIELD: self.text}
