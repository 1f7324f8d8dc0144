"""Read and write the content of a sidecar, in the dialects of the projects that write them.

The projects disagree on the key of a field, so each field has a list of keys in `KEYS`; keys with
different values are an error. Nothing has a silent default. Above all, the *injection* (how the
vector is written) is never guessed::

    fields, source = read_fields(content, "nla_meta.yaml")
    fields["layer"], source["layer"]     # 24, "extraction.layer_index in nla_meta.yaml"
    injection, source["injection"] = read_injection(content, "nla_meta.yaml", preset=None)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from ..core.injection import OPERATIONS, Injection, is_operation
from ..core.numeric import is_int
from ..errors import CheckpointError, shown

KEYS: dict[str, tuple[str, ...]] = {
    "layer": (
        "extraction.layer_index",
        "extraction_layer_index",
        "critic.extraction_layer_index",
        "ar.extraction_layer_index",
        # Schema 1 and the paper's documentation. In a sidecar this is K itself, although the
        # reconstructor's config.json (and ar_num_layers in ar_meta.json) counts K + 1 blocks.
        "critic.num_hidden_layers",
        "ar.num_hidden_layers",
        # Data sets of successors, which have no ``extraction``.
        "layer_index",
    ),
    "layers": (
        "extraction.layer_indices",
        "extraction.layers",
        "layer_indices",
        "future_lens.layer_indices",
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
    "vectors": ("tokens.injection_vectors",),
    "ar_suffix_ids": ("tokens.critic_suffix_ids",),
    "system": ("prompt_templates.av_system",),
    "prefill": ("prompt_templates.av_prefill",),
    "thinking": ("training.enable_thinking",),
    "date": ("training.prompt_date",),
    "baseline": ("extraction.fve_baseline",),
    "base_model": ("extraction.base_model", "base_model", "base_checkpoint"),
    "base_config": ("extraction.base_config",),
}
"""Field of a `Checkpoint` to the keys it is read from; a dot goes one mapping down."""
ROLES = {
    "verbalizer": ("av", "actor", "verbalizer"),
    "reconstructor": ("ar", "critic", "reconstructor"),
}
"""What a sidecar is of, to the values of its key ``role``."""
_REQUIRED = ("layer", "d_model", "template")
_KINDS = ("nla_model", "nla_dataset")
_MODE = "training.injection_mode"
_MODE_LAYER = "training.injection_layer"
_COEFFICIENT = "training.injection_coefficient"
_SCALE = "extraction.injection_scale"
_ADD_MODES = ("karvonen_add_norm_matched", "karvonen", "norm_matched_add")
_REPLACE_MODES = ("replace_embedding", "replace")


def read_fields(content: object, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Read the fields of a checkpoint, without the injection, and require the necessary ones.

    Args:
        content: The parsed sidecar.
        file: Its path, for messages.

    Returns:
        Field to value, and field to the key it was found at.

    Raises:
        CheckpointError: The sidecar is not supported, contradictory or incomplete.
    """
    fields, source = find_fields(check_supported(content, file), file)
    absent = [name for name in _REQUIRED if name not in fields]
    absent += ["marker"] if fields.keys().isdisjoint(("marker", "marker_id")) else []
    missing = [f"{name} (at {' or '.join(KEYS[name])})" for name in absent]
    if missing:
        raise CheckpointError(f"{file}: missing {', '.join(missing)}.")
    return fields, source


def check_supported(content: object, file: str) -> dict[str, Any]:
    """Check that a parsed sidecar is of a kind that this package supports, and return it.

    Raises:
        CheckpointError: It is not a mapping, of an unknown kind or version, or whitened.
    """
    tree = _mapping(content, file)
    kind, version = tree.get("kind"), tree.get("schema_version")
    # Successors write the kind into the version, or their own name before it.
    if kind is None and isinstance(version, str):
        kind, _, version = version.partition("_meta.v")
        version = int(version) if version.isdecimal() else tree["schema_version"]
    if kind not in _KINDS and not str(kind).endswith("_nla_dataset"):
        raise CheckpointError(
            f"{file}: kind is {shown(tree.get('kind'))}, expected one of {', '.join(_KINDS)}."
        )
    if version not in (None, 1, 2):
        raise CheckpointError(
            f"{file}: schema_version is {shown(tree['schema_version'])}; nnsight_nla reads 1 and 2."
        )
    if "concat" in str(tree.get("format")):
        raise CheckpointError(
            f"{file}: format is {shown(tree['format'])}: each row has the vectors of several "
            "layers in one. Split them, a column or a file for each layer."
        )
    norm = find_norm(tree)
    if norm not in (None, "none"):
        what = shown(str(norm))
        raise CheckpointError(
            f"{file}: extraction.norm is {what}. This verbalizer was trained on {what[1:-1]} "
            "vectors, but nnsight_nla supports raw residuals only: the texts would be silently "
            "wrong."
        )
    return tree


def find_fields(content: object, file: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the fields that a parsed sidecar has, and the key each was found at.

    Raises:
        CheckpointError: The sidecar is not a mapping, or contradictory.
    """
    tree = _mapping(content, file)
    fields: dict[str, Any] = {}
    source: dict[str, str] = {}
    for name, keys in KEYS.items():
        found = {key: value for key in keys if (value := _get(tree, key)) is not None}
        if len({repr(value) for value in found.values()}) > 1:
            listed = ", ".join(f"{key} = {shown(value)}" for key, value in found.items())
            raise CheckpointError(f"{file}: {name} has contradictory values: {listed}.")
        for key, value in found.items():
            fields[name], source[name] = value, f"{key} in {file}"
            break
    return fields, source


def find_norm(content: object) -> Any:
    """Return how the vectors of a parsed sidecar were normalised, as it says."""
    tree = content if isinstance(content, dict) else {}
    found = _get(tree, "extraction.norm")
    return _get(tree, "activation_norm") if found is None else found


def find_role(content: object) -> str | None:
    """Return what a parsed sidecar says that its checkpoint is: a key of `ROLES`, or ``None``."""
    said = content.get("role") if isinstance(content, dict) else None
    return next((role for role, names in ROLES.items() if said in names), None)


def read_injection(
    content: object, file: str, preset: tuple[Injection, str] | None
) -> tuple[Injection, str]:
    """Read how the vector is written, and the key that says so.

    Args:
        content: The parsed sidecar, a mapping.
        file: Its path, for messages.
        preset: The built-in injection of a known repository and its source, for a sidecar that does
            not name a mode.

    Raises:
        CheckpointError: The sidecar does not say, or names an unknown mode.
    """
    tree = cast("dict[str, Any]", content)
    mode, scale = _get(tree, _MODE), _get(tree, _SCALE)
    try:
        if mode in _ADD_MODES:
            return _addition(tree, file)
        if mode in _REPLACE_MODES:
            return _replacement(tree, file)
        if mode is not None and is_operation(mode):
            return _registered(tree, file, str(mode))
        numeric = isinstance(scale, int | float) and not isinstance(scale, bool)
        if mode is None and preset is None and numeric:
            found = Injection("replace", "embedding", None, _real(scale))
            return found, f"{_SCALE} in {file}"
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if mode is not None:
        modes = ", ".join(dict.fromkeys((*_ADD_MODES, *_REPLACE_MODES, *OPERATIONS)))
        raise CheckpointError(f"{file}: {_MODE} is {shown(mode)}, expected one of {modes}.")
    if preset is not None:
        return preset
    raise CheckpointError(
        f"{file} does not say how the vector is written (no {_MODE}, and injection_scale is "
        f"{shown(scale)}). Pass it: NLA(..., checkpoint=Injection('add', 'block', 1)) for "
        "norm-matched addition at block 1, or checkpoint=Injection('replace', 'embedding', None, "
        "150.0)."
    )


def write(fields: Mapping[str, Any], role: str) -> dict[str, Any]:
    """Return the fields of a `Checkpoint` as a sidecar of schema version 2.

    Args:
        fields: Field to value, all fields.
        role: ``"av"`` or ``"ar"``.

    Raises:
        CheckpointError: No sidecar can describe the injection.
    """
    injection: Injection = fields["injection"]
    replaces = injection.operation == "replace"
    published = injection.operation in ("add", "replace")
    if published and replaces != (injection.site == "embedding"):
        raise CheckpointError(
            f"{injection} cannot be written to a sidecar: a sidecar describes either 'add' at a "
            "block or 'replace' at the embedding."
        )
    modes = {"add": _ADD_MODES[0], "replace": _REPLACE_MODES[0]}
    tokens: dict[str, Any] = {
        "injection_char": fields["marker"],
        "injection_token_id": fields["marker_id"],
        "injection_left_neighbor_id": fields["left_id"],
        "injection_right_neighbor_id": fields["right_id"],
    }
    if fields["vectors"] is not None:
        tokens["injection_vectors"] = fields["vectors"]
    if fields["ar_suffix_ids"] is not None:
        tokens["critic_suffix_ids"] = list(fields["ar_suffix_ids"])
    extraction: dict[str, Any] = {
        "base_model": fields["base_model"],
        "layer_index": fields["layer"],
        "norm": "none",
        "injection_scale": injection.scale if replaces else None,
        "mse_scale": "sqrt_d_model",
    }
    if fields["layers"] is not None:
        extraction["layer_indices"] = list(fields["layers"])
    if fields["base_config"] is not None:
        extraction["base_config"] = fields["base_config"]
    if fields["baseline"] is not None:
        extraction["fve_baseline"] = fields["baseline"].to_dict()
    templates = {"av": fields["template"]}
    if fields["system"] is not None:
        templates["av_system"] = fields["system"]
    if fields["prefill"] is not None:
        templates["av_prefill"] = fields["prefill"]
    if fields["ar_template"] is not None:
        templates["ar"] = fields["ar_template"]
    training: dict[str, Any] = {
        "injection_mode": modes.get(injection.operation, injection.operation),
        "injection_layer": injection.layer,
        "injection_coefficient": None if replaces else injection.scale,
    }
    if fields["thinking"] is not None:
        training["enable_thinking"] = fields["thinking"]
    if fields["date"] is not None:
        training["prompt_date"] = fields["date"]
    return {
        "kind": "nla_model",
        "schema_version": 2,
        "role": role,
        "d_model": fields["d_model"],
        "extraction": extraction,
        "tokens": tokens,
        "prompt_templates": templates,
        "critic": {"extraction_layer_index": fields["layer"]},
        "training": training,
    }


def _addition(tree: dict[str, Any], file: str) -> tuple[Injection, str]:
    layer = _get(tree, _MODE_LAYER)
    source = f"{_MODE} in {file}" + (" (layer 1, as published)" if layer is None else "")
    coefficient = _real(_get(tree, _COEFFICIENT))
    return Injection("add", "block", 1 if layer is None else layer, coefficient), source


def _replacement(tree: dict[str, Any], file: str) -> tuple[Injection, str]:
    scale = _get(tree, _SCALE)
    for key in (_MODE_LAYER, _COEFFICIENT):
        if _get(tree, key) is not None:
            raise CheckpointError(
                f"{_MODE} is a replacement at the embedding, which contradicts {key} = "
                f"{shown(_get(tree, key))}. Pass what is right: NLA(..., "
                "checkpoint=Injection(...))."
            )
    if scale in (None, "raw", "none"):
        raise CheckpointError(
            f"{_SCALE} is {shown(scale)}, but {_MODE} is a replacement, which needs the L2 norm "
            "that the vector is scaled to; it has no default. Pass it: NLA(..., "
            "checkpoint=Injection('replace', 'embedding', None, 150.0))."
        )
    source = f"{_MODE} in {file}"
    if str(scale) == "sqrt_d_model":
        d_model = _get(tree, "d_model") or _get(tree, "extraction.d_model")
        if not is_int(d_model, 1) or d_model >= 1 << 30:
            raise CheckpointError(f"{_SCALE} is sqrt_d_model, and d_model is {shown(d_model)}.")
        scale, source = math.sqrt(d_model), f"{_MODE} and d_model in {file}"
    return Injection("replace", "embedding", None, _real(scale)), source


def _registered(tree: dict[str, Any], file: str, mode: str) -> tuple[Injection, str]:
    """Read an operation that somebody registered: at a block if the sidecar names one."""
    layer, scale = _get(tree, _MODE_LAYER), _real(_get(tree, _COEFFICIENT))
    site = "embedding" if layer is None else "block"
    return Injection(mode, site, layer, scale), f"{_MODE} in {file}"


def _mapping(content: object, file: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        got = f"{type(content).__name__} {shown(content)}"
        raise CheckpointError(f"{file}: expected a mapping, got {got}.")
    return cast("dict[str, Any]", content)


def _get(tree: dict[str, Any], key: str) -> Any:
    node: Any = tree
    for part in key.split("."):
        if not isinstance(node, dict):
            return None
        node = cast("dict[str, Any]", node).get(part)
    return node


def _real(value: Any) -> Any:
    """Convert an integer to a float if possible; `Injection` refuses anything else by name."""
    return float(value) if is_int(value, 0) and value < 1 << 127 else value
