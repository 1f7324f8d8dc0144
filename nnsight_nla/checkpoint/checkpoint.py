"""What a verbalizer was trained with: one frozen `Checkpoint`.

It is made from a sidecar of any dialect (see `sidecar`), from the built-in preset of a published
checkpoint, or by hand; every field is checked whoever filled it in, and `Checkpoint.source` says
where each value came from.

>>> checkpoint = Checkpoint.preset("ceselder/nanonla-l24-av-qwen3-8b")
>>> checkpoint.layer, checkpoint.d_model, checkpoint.injection.operation
(24, 4096, 'add')
>>> checkpoint.source["injection"]
'preset ceselder/nanonla-l24-av-qwen3-8b'
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.baseline import Baseline
from ..core.injection import Injection
from ..errors import CheckpointError, ReconstructionError
from . import sidecar
from .presets import AR_TEMPLATE, AV_TEMPLATE
from .presets import PRESETS as _PUBLISHED
from .sidecar import is_int

__all__ = [
    "AR_TEMPLATE", "AV_TEMPLATE", "DEPTH_SLOT", "EXPLANATION_SLOT", "MARKER_SLOT", "PRESETS",
    "Checkpoint", "parse_sidecar",
]  # fmt: skip

MARKER_SLOT = "{injection_char}"
EXPLANATION_SLOT = "{explanation}"
DEPTH_SLOT = "{depth_pct}"


@dataclass(frozen=True)
class Checkpoint:
    """What a verbalizer and its reconstructor were trained with, checked field by field."""

    layer: int
    """K: the vector is the output of the target's block K, from 0 (``hidden_states[K+1]``)."""
    d_model: int
    """The width of the residual stream, in entries."""
    template: str
    """The verbalizer's user message, with ``{injection_char}`` wherever the marker goes, and
    perhaps ``{depth_pct}`` (see `at_depth`)."""
    marker: str
    """The one character whose token the vector is written at."""
    marker_id: int
    """The marker's token id."""
    left_id: int | None = None
    """The id of the token before the marker; ``None`` until it is read off the live prompt."""
    right_id: int | None = None
    """The id of the token after the marker; ``None`` until it is read off the live prompt."""
    injection: Injection = field(default_factory=Injection)
    """How the vector is written."""
    ar_template: str | None = None
    """The reconstructor's prompt, with ``{explanation}`` where the text goes."""
    ar_suffix_ids: tuple[int, ...] | None = None
    """The ids that the reconstructor's prompt ends in, where the sidecar says."""
    thinking: bool | None = None
    """What the chat template is told as ``enable_thinking``; ``None`` passes nothing."""
    baseline: Baseline | None = None
    """The denominator of an FVE on this model's residuals, where the sidecar says."""
    base_model: str | None = None
    """The model whose residuals these are, by the name the sidecar gives."""
    sidecar_hash: str | None = None
    """SHA-256 of the sidecar file, in hex; ``None`` for a preset or a checkpoint made by hand."""
    source: Mapping[str, str] = field(default_factory=dict[str, str], compare=False)
    """Field name to the place its value came from."""

    def __post_init__(self) -> None:
        """Check every field, whoever filled it in."""
        if isinstance(self.ar_suffix_ids, list):
            object.__setattr__(self, "ar_suffix_ids", tuple(self.ar_suffix_ids))
        if isinstance(self.baseline, Mapping):
            object.__setattr__(self, "baseline", self._baseline(self.baseline))
        for name, kind, least in (
            ("layer", "a block number from 0", 0),
            ("d_model", "a width from 1", 1),
            ("marker_id", "a token id", 0),
            ("left_id", "a token id", 0),
            ("right_id", "a token id", 0),
        ):
            value: Any = getattr(self, name)
            absent = name in ("left_id", "right_id") and value is None
            if not absent and not is_int(value, least):
                raise CheckpointError(f"{self.where(name)} is {value!r}, expected {kind}.")
        if not isinstance(self.marker, str) or len(self.marker) != 1:  # pyright: ignore
            raise CheckpointError(
                f"{self.where('marker')} is {self.marker!r}, expected the one marker character."
            )
        if self.baseline is not None and not isinstance(self.baseline, Baseline):  # pyright: ignore
            raise CheckpointError(
                f"{self.where('baseline')} is {self.baseline!r}, expected a Baseline(...)."
            )
        if not isinstance(self.injection, Injection):  # pyright: ignore
            raise CheckpointError(f"injection is {self.injection!r}, expected an Injection(...).")
        if self.thinking is not None and not isinstance(self.thinking, bool):  # pyright: ignore
            raise CheckpointError(
                f"{self.where('thinking')} is {self.thinking!r}, expected true, false or nothing."
            )
        self._check_template("template", MARKER_SLOT, several=True)
        if self.ar_template is not None:
            self._check_template("ar_template", EXPLANATION_SLOT)
        if self.base_model is not None and not (
            isinstance(self.base_model, str) and self.base_model  # pyright: ignore
        ):
            raise CheckpointError(
                f"{self.where('base_model')} is {self.base_model!r}, expected a model's name."
            )
        if self.ar_suffix_ids is not None and not (
            isinstance(self.ar_suffix_ids, tuple) and all(map(is_int, self.ar_suffix_ids))  # pyright: ignore
        ):
            raise CheckpointError(
                f"{self.where('ar_suffix_ids')} is {self.ar_suffix_ids!r}, expected token ids."
            )

    @staticmethod
    def load(path_or_id: str | Path, *, injection: Injection | None = None) -> Checkpoint:
        """Read a checkpoint's sidecar from a local folder or a Hub repository.

        Args:
            path_or_id: A folder with an ``nla_meta.yaml``, such a file itself, or ``owner/name`` on
                the Hub. A known repository without a sidecar gets its preset; `source` says so.
            injection: How the vector is written, where you know better than the sidecar.

        Raises:
            CheckpointError: There is no sidecar, or it is malformed, contradictory or incomplete.
        """
        name = str(path_or_id)
        file = sidecar.find(name, tuple(PRESETS))
        if file is None:
            preset = Checkpoint.preset(name)
            if injection is not None:
                source = {**preset.source, "injection": "the caller"}
                return replace(preset, injection=injection, source=source)
            return preset
        raw = file.read_bytes()
        checkpoint = parse_sidecar(sidecar.parse(raw, file), str(file), name, injection)
        return replace(checkpoint, sidecar_hash=hashlib.sha256(raw).hexdigest())

    @staticmethod
    def preset(name: str) -> Checkpoint:
        """The built-in description of a published checkpoint, by its Hub id.

        Raises:
            CheckpointError: There is no preset of that name.
        """
        if name not in PRESETS:
            raise CheckpointError(
                f"There is no preset named {name!r}. Built in: {', '.join(sorted(PRESETS))}. Give "
                "another checkpoint's description with NLA(..., checkpoint=Checkpoint(...))."
            )
        preset = PRESETS[name]
        return replace(preset, source=dict.fromkeys(_fields_set(preset), f"preset {name}"))

    def at_depth(self, blocks: int) -> Checkpoint:
        """The same with ``{depth_pct}`` filled in: the layer's share of the depth, in percent.

        The universal verbalizers that have this slot put ``round(100 * layer / blocks)`` there.

        Args:
            blocks: How many blocks the target has.

        Raises:
            CheckpointError: The target has no block `layer`.
        """
        if DEPTH_SLOT not in self.template:
            return self
        if not is_int(blocks, self.layer + 1):
            raise CheckpointError(
                f"{self.where('layer')} is {self.layer}, and the target has {blocks!r} blocks: "
                f"{DEPTH_SLOT} in the template cannot be filled in."
            )
        percent = round(100 * self.layer / blocks)
        said = f"{DEPTH_SLOT} is {percent}, block {self.layer} of {blocks}"
        origin = self.source.get("template")
        source = {**self.source, "template": f"{origin}; {said}" if origin else said}
        template = self.template.replace(DEPTH_SLOT, str(percent))
        return replace(self, template=template, source=source)

    def to_sidecar(self, role: str, **extra: Any) -> dict[str, Any]:
        """This checkpoint as a ``schema_version: 2`` sidecar, ready for `yaml.safe_dump`.

        Args:
            role: ``"av"`` or ``"ar"``.
            extra: More top-level entries, such as ``stage`` or ``trained_on``.
        """
        injection = self.injection
        replaces = injection.operation == "replace"
        published = injection.operation in ("add", "replace")
        if published and replaces != (injection.site == "embedding"):
            raise CheckpointError(
                f"{injection} has no sidecar: a sidecar says either 'add' at a block or 'replace' "
                "at the embedding."
            )
        modes = {"add": sidecar.ADD_MODES[0], "replace": sidecar.REPLACE_MODES[0]}
        tokens: dict[str, Any] = {
            "injection_char": self.marker,
            "injection_token_id": self.marker_id,
            "injection_left_neighbor_id": self.left_id,
            "injection_right_neighbor_id": self.right_id,
        }
        if self.ar_suffix_ids is not None:
            tokens["critic_suffix_ids"] = list(self.ar_suffix_ids)
        extraction: dict[str, Any] = {
            "base_model": self.base_model,
            "layer_index": self.layer,
            "norm": "none",
            "injection_scale": injection.scale if replaces else None,
            "mse_scale": "sqrt_d_model",
        }
        if self.baseline is not None:
            extraction["fve_baseline"] = self.baseline.to_dict()
        templates = {"av": self.template}
        if self.ar_template is not None:
            templates["ar"] = self.ar_template
        return {
            "kind": "nla_model",
            "schema_version": 2,
            "role": role,
            "d_model": self.d_model,
            "extraction": extraction,
            "tokens": tokens,
            "prompt_templates": templates,
            "critic": {"extraction_layer_index": self.layer},
            "training": {
                "injection_mode": modes.get(injection.operation, injection.operation),
                "injection_layer": injection.layer,
                "injection_coefficient": None if replaces else injection.scale,
                **({} if self.thinking is None else {"enable_thinking": self.thinking}),
            },
            **extra,
        }

    def _baseline(self, fields: Mapping[str, Any]) -> Baseline:
        try:
            return Baseline(**fields)
        except (TypeError, ReconstructionError) as error:
            raise CheckpointError(f"{self.where('baseline')}: {error}") from error

    def _check_template(self, name: str, slot: str, *, several: bool = False) -> None:
        template = getattr(self, name)
        found = template.count(slot) if isinstance(template, str) else 0
        if found != 1 and not (several and found > 1):
            raise CheckpointError(
                f"{self.where(name)} has {found} times {slot}, expected "
                f"{'at least' if several else 'exactly'} one: {template!r}."
            )
        known = {slot, DEPTH_SLOT} if several else {slot}
        others = sorted(set(re.findall(r"\{\w+\}", template)) - known)
        if others:
            raise CheckpointError(
                f"{self.where(name)} has slots that nnsight_nla does not know: "
                f"{', '.join(others)}. Fill them in and pass "
                f"NLA(..., checkpoint=Checkpoint({name}=...))."
            )

    def where(self, name: str) -> str:
        """A field's name and, where it is known, the place its value came from."""
        return f"{name} ({self.source[name]})" if name in self.source else name


def parse_sidecar(
    content: object, file: str, name: str = "", injection: Injection | None = None
) -> Checkpoint:
    """Turn a parsed sidecar of any dialect into a `Checkpoint`.

    Args:
        content: What the YAML or JSON file holds.
        file: Its path, for messages and `Checkpoint.source`.
        name: The checkpoint's Hub id; a known one supplies an injection that the sidecar lacks.
        injection: The caller's own, which wins over everything.
    """
    values, source = sidecar.fields(content, file)
    if injection is not None:
        found = injection, "the caller"
    else:
        known = (PRESETS[name].injection, f"preset {name}") if name in PRESETS else None
        found = sidecar.injection(content, file, known)
    values["injection"], source["injection"] = found
    preset = PRESETS.get(name)
    if preset and (preset.layer, preset.d_model) == (values["layer"], values["d_model"]):
        for key in {"base_model", "baseline"} - set(values):
            values[key], source[key] = getattr(preset, key), f"preset {name}"
    return Checkpoint(**values, source=source)


def _fields_set(checkpoint: Checkpoint) -> list[str]:
    names = [*sidecar.PLACES, "injection"]
    return [name for name in names if getattr(checkpoint, name) is not None]


PRESETS = {name: Checkpoint(**fields) for name, fields in _PUBLISHED.items()}
"""The published checkpoints by their Hub id; see `presets`."""
