"""Sidecars: where they lie, and the dialects they are written in.

A checkpoint folder carries ``nla_meta.yaml`` beside its weights (some a home-made
``nla_meta.json``). The projects that write it disagree on where a field stands, so every field has
a list of places here; places that contradict each other are an error. Nothing defaults silently:
above all the *injection* (how the vector is written) is never guessed.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, cast

import yaml

from ..core.injection import OPERATIONS, Injection, is_operation
from ..errors import CheckpointError

SIDECARS = ("nla_meta.yaml", "nla_meta.json")
DATASET_SUFFIX = ".nla_meta.yaml"

# Where the dialects keep each field; a dot goes one mapping down.
PLACES: dict[str, tuple[str, ...]] = {
    "layer": (
        "extraction.layer_index",
        "extraction_layer_index",
        "critic.extraction_layer_index",
        "ar.extraction_layer_index",
        # Schema 1 and the paper's documentation. In a sidecar this is K itself, where the
        # reconstructor's config.json (and ar_meta.json's ar_num_layers) counts K + 1 blocks.
        "critic.num_hidden_layers",
        "ar.num_hidden_layers",
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
    "thinking": ("training.enable_thinking",),
    "baseline": ("extraction.fve_baseline",),
    "base_model": ("extraction.base_model", "base_model", "base_checkpoint"),
}
_REQUIRED = ("layer", "d_model", "template", "marker", "marker_id")
_KINDS = ("nla_model", "nla_dataset")
_MODE = "training.injection_mode"
_MODE_LAYER = "training.injection_layer"
_COEFFICIENT = "training.injection_coefficient"
_SCALE = "extraction.injection_scale"
ADD_MODES = ("karvonen_add_norm_matched", "karvonen", "norm_matched_add")
REPLACE_MODES = ("replace_embedding", "replace")


def find(name: str, presets: tuple[str, ...]) -> Path | None:
    """The sidecar file of a local folder or a Hub repository, ``None`` where a preset stands in.

    Args:
        name: A folder, a sidecar file, a data set with its sidecar beside it, or a Hub id.
        presets: The Hub ids that do without a sidecar.

    Raises:
        CheckpointError: There is none: what was looked for, where, and what to do.
    """
    path = Path(name).expanduser()
    if path.is_file():
        beside = path.with_name(path.name + DATASET_SUFFIX)
        if path.suffix not in (".yaml", ".yml", ".json") and not beside.is_file():
            raise CheckpointError(
                f"{path} is no sidecar and has none beside it (looked for {beside.name}). Pass a "
                f"folder, a data set with its sidecar, or the sidecar itself."
            )
        return beside if beside.is_file() else path
    if path.is_dir():
        for file in SIDECARS:
            if (path / file).is_file():
                return path / file
        beside = sorted(path.glob(f"*{DATASET_SUFFIX}"))
        if len(beside) == 1:
            return beside[0]
        if beside:
            raise CheckpointError(
                f"{path} has no {' or '.join(SIDECARS)} and several data sets' sidecars: "
                f"{', '.join(file.name for file in beside)}. Pass the one that the checkpoint was "
                f"trained on: NLA(..., checkpoint='{beside[0]}')."
            )
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
    return _download(name, presets)


def fetch(repository: str, name: str) -> Path | None:
    """A file of a Hub repository, ``None`` where the repository is known not to have it.

    Raises:
        OSError: It is not in the cache and cannot be fetched, so nobody knows.
    """
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if try_to_load_from_cache(repository, name) is _CACHED_NO_EXIST:
        return None
    try:
        return Path(hf_hub_download(repository, name))
    except RemoteEntryNotFoundError:
        return None


def _download(name: str, presets: tuple[str, ...]) -> Path | None:
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
    if name in presets:
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
        f"for it (it has {', '.join(sorted(presets))}). Describe it: NLA({name!r}, "
        "checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    )


def fields(sidecar: object, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """A checkpoint's fields from a parsed sidecar of any dialect, without the injection.

    Args:
        sidecar: What the YAML or JSON file holds.
        file: Its path, for messages.

    Returns:
        Field name to value, and field name to the place it was found at.

    Raises:
        CheckpointError: The sidecar is no mapping, of an unknown kind or version, whitened,
            contradictory or incomplete.
    """
    tree = known(sidecar, file)
    values, source = partial(tree, file)
    missing = [f"{key} (at {' or '.join(PLACES[key])})" for key in _REQUIRED if key not in values]
    if missing:
        raise CheckpointError(f"{file}: missing {', '.join(missing)}.")
    return values, source


def known(sidecar: object, file: str) -> dict[str, Any]:
    """A parsed sidecar, of a kind that can be served.

    Raises:
        CheckpointError: It is no mapping, of an unknown kind or version, or whitened.
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
    return tree


def partial(sidecar: object, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What fields a parsed sidecar has, and where; a reconstructor's own may have few.

    Raises:
        CheckpointError: It is no mapping, or two places contradict each other.
    """
    if not isinstance(sidecar, dict):
        raise CheckpointError(f"{file}: a sidecar is a mapping, this holds {_brief(sidecar)}.")
    tree = cast("dict[str, Any]", sidecar)
    values: dict[str, Any] = {}
    source: dict[str, str] = {}
    for key, places in PLACES.items():
        found = {place: _get(tree, place) for place in places if _get(tree, place) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            listed = ", ".join(f"{place} = {value!r}" for place, value in found.items())
            raise CheckpointError(f"{file}: {key} is given twice and differs: {listed}.")
        for place, value in found.items():
            values[key], source[key] = value, f"{place} in {file}"
            break
    return values, source


def injection(
    sidecar: object, file: str, known: tuple[Injection, str] | None
) -> tuple[Injection, str]:
    """How a sidecar says the vector is written, and where it says so.

    Args:
        sidecar: What the YAML or JSON file holds.
        file: Its path, for messages.
        known: A known repository's injection and its source, for a sidecar that names no mode.

    Raises:
        CheckpointError: It does not say, or in words that nobody knows.
    """
    tree = cast("dict[str, Any]", sidecar)
    mode = _get(tree, _MODE)
    scale = _get(tree, _SCALE)
    try:
        if mode in ADD_MODES:
            return _addition(tree, file)
        if mode in REPLACE_MODES:
            return _replacement(tree, file)
        if mode is not None and is_operation(mode):
            return _other(tree, file, str(mode))
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if mode is not None:
        modes = ", ".join(dict.fromkeys((*ADD_MODES, *REPLACE_MODES, *OPERATIONS)))
        raise CheckpointError(f"{file}: {_MODE} is {mode!r}, expected one of {modes}.")
    if known is not None:
        return known
    if isinstance(scale, int | float) and not isinstance(scale, bool):
        try:
            return Injection("replace", "embedding", None, _real(scale)), f"{_SCALE} in {file}"
        except CheckpointError as error:
            raise CheckpointError(f"{file}: {error}") from error
    raise CheckpointError(
        f"{file} does not say how the vector is written (no {_MODE}, and injection_scale is "
        f"{scale!r}). Say it: NLA(..., checkpoint=Injection('add', 'block', 1)) for norm-matched "
        "addition at block 1, or checkpoint=Injection('replace', 'embedding', None, 150.0)."
    )


def _addition(tree: dict[str, Any], file: str) -> tuple[Injection, str]:
    layer = _get(tree, _MODE_LAYER)
    where = f"{_MODE} in {file}" + (" (layer 1, as published)" if layer is None else "")
    coefficient = _real(_get(tree, _COEFFICIENT))
    return Injection("add", "block", 1 if layer is None else layer, coefficient), where


def _replacement(tree: dict[str, Any], file: str) -> tuple[Injection, str]:
    scale = _get(tree, _SCALE)
    for place in (_MODE_LAYER, _COEFFICIENT):
        if _get(tree, place) is not None:
            raise CheckpointError(
                f"{_MODE} is a replacement at the embedding, and {place} is {_get(tree, place)!r}: "
                "these contradict each other. Say what is right: NLA(..., "
                "checkpoint=Injection(...))."
            )
    if scale in (None, "raw", "none"):
        raise CheckpointError(
            f"{_SCALE} is {scale!r}, and {_MODE} is a replacement: it needs the L2 norm that the "
            "vector is brought to, and an absent one is never read as 'raw'. Say it: NLA(..., "
            "checkpoint=Injection('replace', 'embedding', None, 150.0))."
        )
    d_model = _get(tree, "d_model") or _get(tree, "extraction.d_model")
    if str(scale) == "sqrt_d_model":
        if not is_int(d_model, 1) or d_model >= 1 << 30:
            raise CheckpointError(f"{_SCALE} is sqrt_d_model, and d_model is {d_model!r}.")
        root = math.sqrt(d_model)
        return Injection("replace", "embedding", None, root), f"{_MODE} and d_model in {file}"
    return Injection("replace", "embedding", None, _real(scale)), f"{_MODE} in {file}"


def _other(tree: dict[str, Any], file: str, mode: str) -> tuple[Injection, str]:
    """An operation that somebody registered: at a block where the sidecar names one."""
    layer, scale = _get(tree, _MODE_LAYER), _real(_get(tree, _COEFFICIENT))
    site = "embedding" if layer is None else "block"
    return Injection(mode, site, layer, scale), f"{_MODE} in {file}"


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub repository's id, ``owner/name``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def parse(raw: bytes, file: Path) -> object:
    """Parse a sidecar's bytes as YAML, or as JSON where its name says so."""
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


def is_int(value: object, least: int = 0) -> bool:
    """Whether `value` is a whole number of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _real(value: Any) -> Any:
    """A whole number as a float where it can be one; all else as it is, to be refused by name."""
    return float(value) if is_int(value) and value < 1 << 127 else value


def _brief(value: object) -> str:
    return f"{type(value).__name__} {str(value)[:60]!r}"
