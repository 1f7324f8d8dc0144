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

from . import sidecar
from .baseline import Baseline
from .errors import CheckpointError, ReconstructionError
from .injection import Injection
from .sidecar import is_int

MARKER_SLOT = "{injection_char}"
EXPLANATION_SLOT = "{explanation}"

# The templates of the published checkpoints (kitft/natural_language_autoencoders, ceselder/nanoNLA;
# Apache-2.0): what their weights were trained on, to the letter.
AV_TEMPLATE = (
    "You are a meticulous AI researcher conducting an important investigation into activation "
    "vectors from a language model. Your overall task is to describe the semantic content of that "
    "activation vector.\n\nWe will pass the vector enclosed in <concept> tags into your context. "
    "You must then produce an explanation for the vector, enclosed within <explanation> tags. The "
    "explanation consists of 2-3 text snippets describing that vector.\n\nHere is the vector:\n\n"
    "<concept>{injection_char}</concept>\n\nPlease provide an explanation."
)
AR_TEMPLATE = "Summary of the following text: <text>{explanation}</text> <summary>"


@dataclass(frozen=True)
class Checkpoint:
    """What a verbalizer and its reconstructor were trained with, checked field by field."""

    layer: int
    """K: the vector is the output of the target's block K, from 0 (``hidden_states[K+1]``)."""
    d_model: int
    """The width of the residual stream, in entries."""
    template: str
    """The verbalizer's user message, with ``{injection_char}`` where the marker goes."""
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
                raise CheckpointError(f"{self._where(name)} is {value!r}, expected {kind}.")
        if not isinstance(self.marker, str) or len(self.marker) != 1:  # pyright: ignore
            raise CheckpointError(
                f"{self._where('marker')} is {self.marker!r}, expected the one marker character."
            )
        if self.baseline is not None and not isinstance(self.baseline, Baseline):  # pyright: ignore
            raise CheckpointError(
                f"{self._where('baseline')} is {self.baseline!r}, expected a Baseline(...)."
            )
        if not isinstance(self.injection, Injection):  # pyright: ignore
            raise CheckpointError(f"injection is {self.injection!r}, expected an Injection(...).")
        self._check_template("template", MARKER_SLOT)
        if self.ar_template is not None:
            self._check_template("ar_template", EXPLANATION_SLOT)
        if self.base_model is not None and not (
            isinstance(self.base_model, str) and self.base_model  # pyright: ignore
        ):
            raise CheckpointError(
                f"{self._where('base_model')} is {self.base_model!r}, expected a model's name."
            )
        if self.ar_suffix_ids is not None and not (
            isinstance(self.ar_suffix_ids, tuple) and all(map(is_int, self.ar_suffix_ids))  # pyright: ignore
        ):
            raise CheckpointError(
                f"{self._where('ar_suffix_ids')} is {self.ar_suffix_ids!r}, expected token ids."
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

    def to_sidecar(self, role: str, **extra: Any) -> dict[str, Any]:
        """This checkpoint as a ``schema_version: 2`` sidecar, ready for `yaml.safe_dump`.

        Args:
            role: ``"av"`` or ``"ar"``.
            extra: More top-level entries, such as ``stage`` or ``trained_on``.
        """
        injection = self.injection
        replaces = injection.operation == "replace"
        if replaces != (injection.site == "embedding"):
            raise CheckpointError(
                f"{injection} has no sidecar: a sidecar says either 'add' at a block or 'replace' "
                "at the embedding."
            )
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
                "injection_mode": sidecar.REPLACE_MODES[0] if replaces else sidecar.ADD_MODES[0],
                "injection_layer": injection.layer,
                "injection_coefficient": None if replaces else injection.scale,
            },
            **extra,
        }

    def _baseline(self, fields: Mapping[str, Any]) -> Baseline:
        try:
            return Baseline(**fields)
        except (TypeError, ReconstructionError) as error:
            raise CheckpointError(f"{self._where('baseline')}: {error}") from error

    def _check_template(self, name: str, slot: str) -> None:
        template = getattr(self, name)
        found = template.count(slot) if isinstance(template, str) else 0
        if found != 1:
            raise CheckpointError(
                f"{self._where(name)} has {found} times {slot}, expected exactly one: {template!r}."
            )
        others = sorted(set(re.findall(r"\{\w+\}", template)) - {slot})
        if others:
            raise CheckpointError(
                f"{self._where(name)} has slots that nnsight_nla does not know: "
                f"{', '.join(others)}. Fill them in and pass "
                "NLA(..., checkpoint=Checkpoint(template=...))."
            )

    def _where(self, name: str) -> str:
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
    return Checkpoint(**values, source=source)


def _fields_set(checkpoint: Checkpoint) -> list[str]:
    names = [*sidecar.PLACES, "injection"]
    return [name for name in names if getattr(checkpoint, name) is not None]


PRESETS: dict[str, Checkpoint] = {
    "ceselder/nanonla-l24-av-qwen3-8b": Checkpoint(
        layer=24,
        d_model=4096,
        template=AV_TEMPLATE,
        marker="㈎",
        marker_id=149705,
        left_id=29,
        right_id=522,
        injection=Injection("add", "block", 1),
        ar_template=AR_TEMPLATE,
        ar_suffix_ids=(1318, 29, 366, 1708, 29),
        base_model="Qwen/Qwen3-8B",
    ),
}
