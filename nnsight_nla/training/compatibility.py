"""Whether a file of rows and a base model belong together, before any weights are loaded.

The rows' sidecar says which model and layer they were read from, and which token ids its tokenizer
gave the marker and its neighbours. A tokenizer that has moved since writes the vector elsewhere,
without an error: so all of it is held against the live one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE, Checkpoint
from ..checkpoint.sidecar import DATASET_SUFFIX
from ..core.injection import Injection
from .published import Published
from .rows import TrainingError
from .saving import describe

_IDS = {
    "left_id": "injection_left_neighbor_id",
    "right_id": "injection_right_neighbor_id",
    "ar_suffix_ids": "critic_suffix_ids",
}


def described(
    rows: Published,
    base: str | Path,
    layer: int | None = None,
    base_name: str | None = None,
    injection: Injection | None = None,
) -> tuple[Any, Checkpoint]:
    """The base's tokenizer, and the checkpoint that training it on `rows` will make.

    Args:
        rows: With their sidecar, whose word is taken for what it says.
        base: The model to train, a folder or a Hub id.
        layer: K, where there is no sidecar.
        base_name: What the sidecar calls `base`.
        injection: How vectors are written.

    Raises:
        TrainingError: Base, layer, width or token ids are not those of the rows.
    """
    meta, file = rows.meta, rows.file
    found = meta.get("layer", layer)
    if found is None:
        raise TrainingError(
            f"{file} has no sidecar beside it ({file.name}{DATASET_SUFFIX}) that says which layer "
            "its vectors are from. Say it: --layer K, the block whose output they are, from 0."
        )
    if layer not in (None, found):
        raise TrainingError(
            f"--layer {layer}, but the vectors of {file} are from layer {found}, its sidecar says."
        )
    name = base_name or str(base)
    rows_of = meta.get("base_model")
    if rows_of is not None and Path(rows_of).name.lower() != Path(name).name.lower():
        raise TrainingError(
            f"The vectors of {file} are {rows_of}'s, its sidecar says; --base is {name}. Train "
            f"from --base {rows_of}, or, where this is the same model under another name, add "
            f"--base-name {rows_of}."
        )
    config = check_base(base)
    if config.num_hidden_layers <= found:
        raise TrainingError(
            f"The vectors of {file} are from layer {found}; {base} has blocks 0 to "
            f"{config.num_hidden_layers - 1}."
        )
    width = config.hidden_size
    if meta.get("d_model", width) != width:
        raise TrainingError(
            f"The vectors of {file} have width {meta['d_model']}, its sidecar says; {base} has "
            f"d_model {width}."
        )
    tokenizer = _tokenizer(base)
    _check_marker(rows, tokenizer, base)
    live = describe(
        tokenizer,
        layer=found,
        d_model=width,
        base_model=rows_of or name,
        marker=meta.get("marker", "㈎"),
        injection=injection or meta.get("injection") or Injection(),
        template=meta.get("template", AV_TEMPLATE),
        ar_template=meta.get("ar_template", AR_TEMPLATE),
    )
    for field, key in _IDS.items():
        here, there = getattr(live, field), meta.get(field)
        there = tuple(there) if isinstance(there, list) else there
        if there is not None and here != there:
            raise _drifted(rows, key, there, base, here)
    return tokenizer, live


def check_base(base: str | Path) -> Any:
    """The text configuration of the model to train.

    Raises:
        TrainingError: There is none.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(base).get_text_config()
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"--base {base}: its configuration could not be read: {str(error).splitlines()[0]} "
            "With no network, download the model elsewhere and give its folder."
        ) from error


def _tokenizer(base: str | Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"--base {base}: its tokenizer could not be read: {str(error).splitlines()[0]}"
        ) from error


def _check_marker(rows: Published, tokenizer: Any, base: str | Path) -> None:
    marker, there = rows.meta.get("marker"), rows.meta.get("marker_id")
    if marker is None or there is None:
        return
    here = list(tokenizer.encode(marker, add_special_tokens=False))
    if here != [there]:
        raise _drifted(rows, "injection_token_id", there, base, here[0] if len(here) == 1 else here)


def _drifted(rows: Published, key: str, there: Any, base: Any, here: Any) -> TrainingError:
    there, here = (list(each) if isinstance(each, tuple) else each for each in (there, here))
    return TrainingError(
        f"{rows.file}{DATASET_SUFFIX}: tokens.{key} is {there}, the tokenizer of {base} gives "
        f"{here}. The rows were made with another tokenizer: train from the model, in the version, "
        "that they were read from, or make the rows anew."
    )
