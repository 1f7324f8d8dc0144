"""Check that a file of rows and a base model belong together, before any weights are loaded.

The sidecar of the rows says which model and layer they were read from, and which token ids its
tokenizer gave the marker and the tokens around it. A tokenizer that has changed since would write
the vector elsewhere, without an error; so the live tokenizer is compared with the sidecar.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE, QUESTION_SLOT, Checkpoint
from ..checkpoint.identity import same_model
from ..checkpoint.oracle_presets import ORACLE_MARKER, ORACLE_TEMPLATE
from ..checkpoint.sidecar import DATASET_SUFFIX
from ..core.injection import Injection
from ..models.loading import expanded, from_pretrained
from .published import Published
from .rows import TrainingError
from .saving import describe

_IDS = {
    "marker_id": "injection_token_id",
    "left_id": "injection_left_neighbor_id",
    "right_id": "injection_right_neighbor_id",
    "ar_suffix_ids": "critic_suffix_ids",
}


def compatible_checkpoint(
    rows: Published,
    base: str | Path,
    layer: int | None = None,
    base_name: str | None = None,
    injection: Injection | None = None,
    date: str | None = None,
) -> tuple[Any, Checkpoint]:
    """Return the base's tokenizer, and the checkpoint that training the base on `rows` will make.

    Args:
        rows: The rows; their sidecar has precedence over the defaults.
        base: The model to train, a folder or a Hub id.
        layer: K, where there is no sidecar.
        base_name: The name of `base` in the sidecar.
        injection: How vectors are written.
        date: The date in the prompt, where the rows' sidecar has none; see `describe`.

    Raises:
        TrainingError: Base, layer, width or token ids are not those of the rows.
    """
    from transformers import AutoConfig, AutoTokenizer

    meta, file = rows.meta, rows.file
    layers = rows.layers if rows.asks else []
    found = meta.get("layer", layer)
    found = layers[0] if found is None and layers else found
    if found is None:
        raise TrainingError(
            f"{file} has no sidecar ({file.name}{DATASET_SUFFIX}) that names the layer of its "
            "vectors. Pass layer=K: the block whose output they are, counted from 0."
        )
    if layer not in (None, found):
        raise TrainingError(
            f"layer={layer}, but the vectors of {file} are from layer {found} (by its sidecar)."
        )
    name = base_name or expanded(base)
    rows_of = meta.get("base_model")
    if rows_of is not None and not same_model(rows_of, name, (meta.get("base_config"), None)):
        raise TrainingError(
            f"The vectors of {file} were read from {rows_of} (by its sidecar), not from {name}. "
            f"Pass base={rows_of!r}; or, if this is the same model under another name, "
            f"base_name={rows_of!r}."
        )
    if layers and found not in layers:
        raise TrainingError(
            f"layer={found}, but the rows of {file} are from {', '.join(map(str, layers))}. Pass "
            f"layer={layers[0]}, or correct the sidecar."
        )
    config = read_base(
        "configuration", base, partial(from_pretrained, AutoConfig)
    ).get_text_config()
    deepest = max([found, *layers])
    if config.num_hidden_layers <= deepest:
        raise TrainingError(
            f"The vectors of {file} are from layer {deepest}; {base} has blocks 0 to "
            f"{config.num_hidden_layers - 1}."
        )
    width = config.hidden_size
    if meta.get("d_model", width) != width:
        raise TrainingError(
            f"The vectors of {file} have width {meta['d_model']} (by its sidecar); {base} has "
            f"d_model {width}."
        )
    tokenizer = read_base("tokenizer", base, partial(from_pretrained, AutoTokenizer))
    marker = meta.get("marker", _oracle_marker(tokenizer) if rows.asks else "㈎")
    template = meta.get("template", ORACLE_TEMPLATE if rows.asks else AV_TEMPLATE)
    if rows.asks != (QUESTION_SLOT in template):
        raise TrainingError(
            f"{file} has {'questions' if rows.asks else 'no questions'}, and its sidecar's prompt "
            f"has {'no' if rows.asks else 'a'} place for one ({QUESTION_SLOT}). Correct the "
            "sidecar's prompt, or take the rows that it is for."
        )
    if rows.several != (meta.get("vectors") not in (None, 1)):
        held = "several vectors" if rows.several else "one vector"
        raise TrainingError(
            f"{file} has {held} in each row, and its sidecar ({file.name}{DATASET_SUFFIX}) says "
            f"that tokens.injection_vectors is {meta.get('vectors', 1)}. Write there how many "
            "vectors each row has, and a prompt with a marker for each: "
            "describe(..., vectors=2, template=...).to_sidecar('av')."
        )
    if "marker" in meta:
        _check_ids(rows, base, "marker_id", tokenizer.encode(marker, add_special_tokens=False))
    live = describe(
        tokenizer,
        layer=found,
        layers=layers if len(layers) > 1 else None,
        d_model=width,
        base_model=rows_of or name,
        marker=marker,
        injection=injection or meta.get("injection") or Injection(),
        template=template,
        system=meta.get("system"),
        ar_template=None if rows.asks or rows.several else meta.get("ar_template", AR_TEMPLATE),
        date=meta.get("date", date),
        vectors=meta.get("vectors"),
    )
    for field in ("left_id", "right_id", "ar_suffix_ids"):
        _check_ids(rows, base, field, getattr(live, field))
    rows.origin.check(live, str(file), insist=None, error=TrainingError)
    return tokenizer, live


def check_attention(base: str | Path, attention: str | None) -> None:
    """Raise if the base cannot compute attention in this way; no weights are loaded."""
    from transformers import AutoConfig, AutoModelForCausalLM

    if attention is None:
        return
    config = read_base("configuration", base, partial(from_pretrained, AutoConfig))
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    except (ImportError, ValueError) as error:
        raise TrainingError(
            f"attention={attention!r} does not work for {base}: {str(error).splitlines()[0]} "
            "Choose another, such as attention='eager', or leave it out."
        ) from error


def read_base(what: str, base: str | Path, load: Callable[..., Any], **options: Any) -> Any:
    """Call ``load(base, **options)``; turn a failure into an error that says what to do."""
    try:
        return load(base, **options)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"The {what} of base={str(base)!r} cannot be read: {str(error).splitlines()[0]} "
            "With no network, download the model elsewhere and pass its folder."
        ) from error


def _check_ids(rows: Published, base: str | Path, field: str, live: Any) -> None:
    """Compare token ids with those of the sidecar, where it has some."""
    if rows.meta.get(field) is None:
        return
    here, there = (_plain(each) for each in (live, rows.meta[field]))
    if here != there:
        raise TrainingError(
            f"{rows.file}{DATASET_SUFFIX}: tokens.{_IDS[field]} is {there}, the tokenizer of "
            f"{base} gives {here}. The rows were made with another tokenizer: train from the "
            "version of the model that they were read from, or make the rows again."
        )


def _oracle_marker(tokenizer: Any) -> str | None:
    """Return the published marker; ``None``, for `describe` to choose, if it is not one token."""
    whole = len(tokenizer.encode(ORACLE_MARKER, add_special_tokens=False)) == 1
    return ORACLE_MARKER if whole else None


def _plain(ids: Any) -> Any:
    """Return one id as a number and several as a list, as a sidecar has them."""
    ids = list(ids) if isinstance(ids, tuple | list) else ids
    return ids[0] if isinstance(ids, list) and len(ids) == 1 else ids
