"""What a verbalizer was trained with: the sidecar's dialects, read into one frozen `Checkpoint`.

A checkpoint folder carries ``nla_meta.yaml`` beside its weights (some a home-made
``nla_meta.json``). The projects that write it disagree on where a field stands, so every field has
a list of places here; places that contradict each other are an error, and `Checkpoint.source` says
where each value came from. Nothing defaults silently: above all the *injection* (how the vector is
written) is never guessed.

>>> checkpoint = Checkpoint.preset("ceselder/nanonla-l24-av-qwen3-8b")
>>> checkpoint.layer, checkpoint.d_model, checkpoint.injection.operation
(24, 4096, 'add')
>>> checkpoint.source["injection"]
'preset ceselder/nanonla-l24-av-qwen3-8b'
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import yaml

from .errors import CheckpointError
from .injection import Injection

MARKER_SLOT = "{injection_char}"
EXPLANATION_SLOT = "{explanation}"
SIDECARS = ("nla_meta.yaml", "nla_meta.json")

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

# Where the dialects keep each field; a dot goes one mapping down.
_PLACES: dict[str, tuple[str, ...]] = {
    "layer": (
        "extraction.layer_index",
        "extraction_layer_index",
        "critic.extraction_layer_index",
        "ar.extraction_layer_index",
    ),
    "d_model": ("d_model", "extraction.d_model"),
    "template": ("prompt_templates.av", "prompt_templates.actor", "prompt_templates.verbalizer"),
    "ar_template": (
        "prompt_templates.ar",
        "prompt_templates.critic",
        "prompt_templates.reconstructor",
    ),
    "marker": ("tokens.injection_char",),
    "marker_id": ("tokens.injection_token_id",),
    "left_id": ("tokens.injection_left_neighbor_id",),
    "right_id": ("tokens.injection_right_neighbor_id",),
    "ar_suffix_ids": ("tokens.critic_suffix_ids",),
    "base_model": ("extraction.base_model", "base_model", "base_checkpoint"),
}
_REQUIRED = ("layer", "d_model", "template", "marker", "marker_id")
_KINDS = ("nla_model", "nla_dataset")
_MODE = "training.injection_mode"
_MODE_LAYER = "training.injection_layer"
_COEFFICIENT = "training.injection_coefficient"
_ADD_MODES = ("karvonen_add_norm_matched", "karvonen", "norm_matched_add")
_REPLACE_MODES = ("replace_embedding", "replace")


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
        for name, kind, least in (
            ("layer", "a block number from 0", 0),
            ("d_model", "a width from 1", 1),
            ("marker_id", "a token id", 0),
            ("left_id", "a token id", 0),
            ("right_id", "a token id", 0),
        ):
            value: Any = getattr(self, name)
            absent = name in ("left_id", "right_id") and value is None
            if not absent and not _is_int(value, least):
                raise CheckpointError(f"{self._where(name)} is {value!r}, expected {kind}.")
        if not isinstance(self.marker, str) or len(self.marker) != 1:  # pyright: ignore
            raise CheckpointError(
                f"{self._where('marker')} is {self.marker!r}, expected the one marker character."
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
            isinstance(self.ar_suffix_ids, tuple) and all(map(_is_int, self.ar_suffix_ids))  # pyright: ignore
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
        file = _find_sidecar(name)
        if file is None:
            preset = Checkpoint.preset(name)
            if injection is not None:
                source = {**preset.source, "injection": "the caller"}
                return replace(preset, injection=injection, source=source)
            return preset
        raw = file.read_bytes()
        checkpoint = parse_sidecar(_parse_text(raw, file), str(file), name, injection)
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
        templates = {"av": self.template}
        if self.ar_template is not None:
            templates["ar"] = self.ar_template
        return {
            "kind": "nla_model",
            "schema_version": 2,
            "role": role,
            "d_model": self.d_model,
            "extraction": {
                "base_model": self.base_model,
                "layer_index": self.layer,
                "norm": "none",
                "injection_scale": injection.scale if replaces else None,
                "mse_scale": "sqrt_d_model",
            },
            "tokens": tokens,
            "prompt_templates": templates,
            "critic": {"extraction_layer_index": self.layer},
            "training": {
                "injection_mode": _REPLACE_MODES[0] if replaces else _ADD_MODES[0],
                "injection_layer": injection.layer,
                "injection_coefficient": None if replaces else injection.scale,
            },
            **extra,
        }

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
    sidecar: object, file: str, name: str = "", injection: Injection | None = None
) -> Checkpoint:
    """Turn a parsed sidecar of any dialect into a `Checkpoint`.

    Args:
        sidecar: What the YAML or JSON file holds.
        file: Its path, for messages and `Checkpoint.source`.
        name: The checkpoint's Hub id; a known one supplies an injection that the sidecar lacks.
        injection: The caller's own, which wins over everything.
    """
    if not isinstance(sidecar, dict):
        raise CheckpointError(f"{file}: a sidecar is a mapping, this holds {_brief(sidecar)}.")
    tree = cast("dict[str, Any]", sidecar)
    if tree.get("kind") not in _KINDS:
        raise CheckpointError(
            f"{file}: kind is {tree.get('kind')!r}, expected one of {', '.join(_KINDS)}."
        )
    if tree.get("schema_version") not in (None, 1, 2):
        raise CheckpointError(
            f"{file}: schema_version is {tree['schema_version']!r}; nnsight_nla reads 1 and 2."
        )
    norm = _get(tree, "extraction.norm")
    if norm not in (None, "none"):
        raise CheckpointError(
            f"{file}: extraction.norm is {norm!r}. This verbalizer was trained on {norm} vectors, "
            "and nnsight_nla serves raw residuals only: its texts would be wrong without a warning."
        )
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for key, places in _PLACES.items():
        found = {place: _get(tree, place) for place in places if _get(tree, place) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            listed = ", ".join(f"{place} = {value!r}" for place, value in found.items())
            raise CheckpointError(f"{file}: {key} is given twice and differs: {listed}.")
        for place, value in found.items():
            values[key], source[key] = value, f"{place} in {file}"
            break
    missing = [f"{key} (at {' or '.join(_PLACES[key])})" for key in _REQUIRED if key not in values]
    if missing:
        raise CheckpointError(f"{file}: missing {', '.join(missing)}.")
    values["injection"], source["injection"] = _injection(
        tree, file, name, injection, values["d_model"]
    )
    return Checkpoint(**values, source=source)


def _injection(
    tree: dict[str, Any], file: str, name: str, given: Injection | None, d_model: Any
) -> tuple[Injection, str]:
    """The injection and where it came from, in the documented order of precedence."""
    if given is not None:
        return given, "the caller"
    mode = _get(tree, _MODE)
    scale = _get(tree, "extraction.injection_scale")
    if mode in _ADD_MODES:
        layer, coefficient = _get(tree, _MODE_LAYER), _get(tree, _COEFFICIENT)
        where = f"{_MODE} in {file}" + (" (layer 1, as published)" if layer is None else "")
        return Injection("add", "block", 1 if layer is None else layer, _real(coefficient)), where
    if mode in _REPLACE_MODES:
        if str(scale) == "sqrt_d_model" and _is_int(d_model, 1) and d_model < 1 << 30:
            return Injection("replace", "embedding", None, math.sqrt(d_model)), (
                f"{_MODE} and d_model in {file}"
            )
        return Injection("replace", "embedding", None, _real(scale)), f"{_MODE} in {file}"
    if mode is not None:
        known = ", ".join((*_ADD_MODES, *_REPLACE_MODES))
        raise CheckpointError(f"{file}: {_MODE} is {mode!r}, expected one of {known}.")
    if name in PRESETS:
        return PRESETS[name].injection, f"preset {name}"
    if isinstance(scale, int | float) and not isinstance(scale, bool):
        return (
            Injection("replace", "embedding", None, _real(scale)),
            f"extraction.injection_scale in {file}",
        )
    raise CheckpointError(
        f"{file} does not say how the vector is written (no {_MODE}, and injection_scale is "
        f"{scale!r}). Say it: NLA(..., checkpoint=Injection('add', 'block', 1)) for norm-matched "
        "addition at block 1, or checkpoint=Injection('replace', 'embedding', None, 150.0)."
    )


def _find_sidecar(name: str) -> Path | None:
    """The sidecar file of a local folder or a Hub repository, ``None`` where a preset stands in."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for file in SIDECARS:
            if (path / file).is_file():
                return path / file
        raise CheckpointError(
            f"{path} has no {' or '.join(SIDECARS)}. Use the folder that ships with the "
            "checkpoint, or describe it: "
            "NLA(..., checkpoint=Checkpoint(layer=..., d_model=..., ...))."
        )
    if not is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is neither a folder on this machine (looked at {path.absolute()}) nor a Hub "
            "id of the form 'owner/name'."
        )
    return _download_sidecar(name)


def _download_sidecar(name: str) -> Path | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RemoteEntryNotFoundError,
    )

    unreachable: Exception | None = None
    for file in SIDECARS:
        try:
            return Path(hf_hub_download(name, file))
        except RemoteEntryNotFoundError:
            continue
        except (
            HfHubHTTPError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            OSError,
        ) as error:
            unreachable = unreachable or error
    if name in PRESETS:
        return None
    if unreachable is not None:
        raise CheckpointError(
            f"{name!r}: {' or '.join(SIDECARS)} is not in the local Hub cache "
            f"({constants.HF_HUB_CACHE}) and could not be fetched ({type(unreachable).__name__}). "
            "With no network, download the repository elsewhere and pass its folder: "
            f"NLA('/path/to/{name.split('/')[-1]}'). The embedded pair needs no network: "
            "nnsight_nla.tiny.load()."
        ) from unreachable
    raise CheckpointError(
        f"The Hub repository {name!r} has no {' or '.join(SIDECARS)} and nnsight_nla has no preset "
        f"for it (it has {', '.join(sorted(PRESETS))}). Describe it: NLA({name!r}, "
        "checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    )


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub repository's id, ``owner/name``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def _parse_text(raw: bytes, file: Path) -> object:
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except Exception as error:  # yaml passes on what int(), datetime() and deep nesting raise.
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise CheckpointError(f"{file} is not readable as {kind}: {error}") from error


def _get(tree: dict[str, Any], place: str) -> Any:
    node: Any = tree
    for key in place.split("."):
        if not isinstance(node, dict):
            return None
        node = cast("dict[str, Any]", node).get(key)
    return node


def _fields_set(checkpoint: Checkpoint) -> list[str]:
    names = [*_PLACES, "injection"]
    return [name for name in names if getattr(checkpoint, name) is not None]


def _is_int(value: object, least: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: Any) -> Any:
    """A whole number as a float where it can be one; all else as it is, to be refused by name."""
    return float(value) if _is_int(value) and value < 1 << 127 else value


def _brief(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"


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
