"""Read every file layout of a reconstructor into one `Layout`.

A reconstructor is the first K + 1 blocks of its base and a square head. Three layouts are in use:

* a **truncated model** with ``value_head.safetensors`` in the same folder;
* an **adapter** on the base: ``ar_meta.json`` and ``ar_lora_value_head.safetensors``, which holds
  the adapter's matrices and the head; or in PEFT's format, with ``value_head.safetensors``;
* a **plain base model**, cut after block K when it is loaded. Without a head file, the head is the
  identity, as at the start of training, with a warning.

Only the head is loaded here; the blocks are loaded when the first text is reconstructed.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import tempfile
import warnings
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..checkpoint import dialects, sidecar
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.sidecar import stored
from ..errors import CheckpointError, NLAWarning, shown
from . import hosts
from .loading import load_config, located

if TYPE_CHECKING:
    from jaxtyping import Float
    from nnsight import TransformersModel

Role = Literal["verbalizer", "reconstructor"]

HEAD = "value_head.safetensors"
ADAPTER = "ar_lora_value_head.safetensors"
META = "ar_meta.json"
PEFT = "adapter_config.json"
PEFT_WEIGHTS = "adapter_model.safetensors"
_PER_BLOCK = ("layer_types", "no_rope_layers", "sliding_window_pattern")


@dataclass(frozen=True)
class Layout:
    """The parts of a reconstructor, before the weights of its blocks are loaded."""

    base: str | Path
    """The folder or Hub id of the blocks."""
    head: Float[Tensor, "d_model d_model"]
    """The matrix that maps the residual at the last token to the vector."""
    template: str | None
    """Its prompt template, if its own sidecar has one."""
    suffix_ids: tuple[int, ...] | None
    """The ids that its prompt ends with, if its own sidecar has them."""
    final_norm: bool
    """Whether the base's final norm is applied; older adapters were trained with it."""
    adapter: Path | None = None
    """The adapter as a PEFT folder (deleted with this record if made here), or its Hub id."""
    travels: bool = False
    """Whether the adapter is stored in PEFT's format, so that a host can read it."""


def read(source: str | Path | TransformersModel, checkpoint: Checkpoint) -> Layout:
    """Find the layout of a reconstructor and read its head.

    Args:
        source: A folder, a Hub id, or a live model that came from one.
        checkpoint: The verbalizer's, for fields that the reconstructor's own sidecar lacks.

    Raises:
        CheckpointError: Files are missing, damaged, or of another layer or width.
    """
    where = source if isinstance(source, str | Path) else hosts.describe(source)
    check_role(source, "reconstructor")
    meta_file = stored(where, META)
    template, suffix, stripped = _own_sidecar(where, checkpoint)
    if meta_file is not None:
        return _adapter(where, meta_file, checkpoint, template, suffix)
    if stored(where, PEFT) is not None:
        return _peft(where, checkpoint, template, suffix, stripped is False)
    head_file = stored(where, HEAD, needed=True)
    head = _identity(where, source, checkpoint) if head_file is None else _matrix(head_file)
    base = Path(where).expanduser() if Path(where).expanduser().exists() else where
    own_head = head_file is not None and isinstance(source, str | Path)
    if own_head and cut_config(base, checkpoint.layer, {}) is not None:
        warnings.warn(
            f"{where} has a head and more blocks than a reconstructor of layer {checkpoint.layer}, "
            "so it is cut after that block. If the head was trained on a later block, this is the "
            "reconstructor of another layer.",
            NLAWarning,
            stacklevel=4,
        )
    return Layout(base, head, template, suffix, final_norm=stripped is False)


def check_role(source: str | Path | TransformersModel, expected: Role) -> None:
    """Check that a checkpoint is what it is passed as.

    Args:
        source: A folder, a Hub id, or a live model that may have come from one.
        expected: What it is passed as.

    Raises:
        CheckpointError: Its sidecar or its files say that it is the other one.
    """
    live = not isinstance(source, str | Path)
    where = hosts.describe(source) if live else str(source)
    if live and not (Path(where).expanduser().is_dir() or sidecar.is_hub_id(where)):
        return
    found = next(((name, file) for name in sidecar.SIDECARS if (file := stored(where, name))), None)
    role = None if found is None else dialects.find_role(sidecar.read(found[1]))
    sign = "" if found is None else f"role in {found[0]}"
    if role is None and expected == "verbalizer":
        sign = next((name for name in (META, HEAD) if stored(where, name)), "")
        role = "reconstructor" if sign else None
    if role not in (None, expected):
        given = {"verbalizer": "av=", "reconstructor": "ar="}
        raise CheckpointError(
            f"{where} is a {role} ({sign}), passed as the {expected}. Pass it as {given[role]}: "
            "NLA('the verbalizer', ar='the reconstructor')."
        )


def cut_config(source: str | Path, layer: int, load: dict[str, Any]) -> Any | None:
    """Return a configuration without the blocks after `layer`, ``None`` if there are none.

    Raises:
        CheckpointError: `source` has no block `layer`.
    """
    try:
        config = load_config(source, load)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"The configuration of the reconstructor {str(source)!r} could not be read: "
            f"{str(error).strip().splitlines()[0]}"
        ) from error
    text = config.get_text_config()
    if text.num_hidden_layers <= layer:
        raise CheckpointError(
            f"{source} has {text.num_hidden_layers} blocks; a reconstructor of layer {layer} has "
            f"{layer + 1}."
        )
    if text.num_hidden_layers == layer + 1:
        return None
    config = copy.deepcopy(config)
    shorten(config, layer + 1)
    return config


def shorten(config: Any, blocks: int) -> None:
    """Shorten `config` to a model of the first `blocks` blocks."""
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    for name in _PER_BLOCK:
        if isinstance(getattr(text, name, None), list):
            setattr(text, name, list(getattr(text, name))[:blocks])


def _adapter(
    where: str | Path,
    meta_file: Path,
    checkpoint: Checkpoint,
    template: str | None,
    suffix: tuple[int, ...] | None,
) -> Layout:
    meta = _meta(meta_file)
    if meta["ar_num_layers"] != checkpoint.layer + 1:
        raise CheckpointError(
            f"{meta_file}: ar_num_layers is {meta['ar_num_layers']}; a reconstructor of layer "
            f"{checkpoint.layer} has {checkpoint.layer + 1}. Use the verbalizer and reconstructor "
            "of one checkpoint."
        )
    base = meta.get("base_model") or checkpoint.base_model
    base = None if base is None else located(str(base), where)
    if base is None:
        raise CheckpointError(
            f"{where} is an adapter and neither {META} nor the sidecar names its base model. Pass "
            "it: NLA(..., checkpoint=Checkpoint(base_model=...))."
        )
    weights = stored(where, ADAPTER)
    if weights is None:
        raise CheckpointError(f"{where} has {META} and no {ADAPTER}.")
    tensors = _tensors(weights)
    head = tensors.pop("value_head.weight", None)
    if head is None or not tensors or not all("lora_" in name for name in tensors):
        raise CheckpointError(
            f"{weights} holds {', '.join(sorted(tensors)[:4]) or 'nothing'}; expected "
            "'value_head.weight' and the adapter's 'lora_' matrices."
        )
    folder = _as_peft(tensors, meta, str(base))
    norm = not meta.get("final_norm_stripped", False)
    layout = Layout(base, head.float(), template, suffix, norm, folder)
    weakref.finalize(layout, shutil.rmtree, folder, ignore_errors=True)
    return layout


def _peft(
    where: str | Path,
    checkpoint: Checkpoint,
    template: str | None,
    suffix: tuple[int, ...] | None,
    norm: bool,
) -> Layout:
    file = stored(where, PEFT, needed=True)
    head_file = stored(where, HEAD)
    if file is None or head_file is None:
        raise CheckpointError(f"{where} has {PEFT} and no {HEAD}; a reconstructor has a head.")
    config = sidecar.read(file)
    named = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    base = named or checkpoint.base_model
    base = None if base is None else located(str(base), where)
    if base is None:
        raise CheckpointError(
            f"{where} is an adapter and neither {PEFT} nor the sidecar names its base model. Pass "
            "it: NLA(..., checkpoint=Checkpoint(base_model=...))."
        )
    folder = Path(where).expanduser()
    adapter = folder if folder.is_dir() else Path(where)
    return Layout(base, _matrix(head_file), template, suffix, norm, adapter, travels=True)


def _meta(file: Path) -> dict[str, Any]:
    meta = sidecar.read(file)
    wanted = {"ar_num_layers": int, "lora_r": int, "lora_alpha": int | float}
    if not isinstance(meta, dict) or not all(
        isinstance(meta.get(name), kind) for name, kind in wanted.items()
    ):
        raise CheckpointError(
            f"{file}: expected numbers for {', '.join(wanted)}, got {shown(meta)}."
        )
    listed = meta.get("target_modules")
    if not isinstance(listed, list) or not all(isinstance(each, str) for each in listed):
        raise CheckpointError(f"{file}: expected a list of target_modules, got {shown(listed)}.")
    return meta


def _as_peft(tensors: dict[str, Tensor], meta: dict[str, Any], base: str) -> Path:
    """Write the adapter in PEFT's format, so that nnsight can load it."""
    from safetensors.torch import save_file

    folder = Path(tempfile.mkdtemp(prefix="nnsight_nla-ar-"))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": meta["lora_r"],
        "lora_alpha": meta["lora_alpha"],
        # ar_meta.json lacks it; the code that writes that file trains and reloads with it on.
        "use_rslora": meta.get("use_rslora", True),
        "target_modules": meta["target_modules"],
        "bias": "none",
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    named = {
        "base_model.model." + name.removeprefix("backbone.").replace(".default.", "."): value
        for name, value in tensors.items()
    }
    save_file(named, folder / "adapter_model.safetensors")
    return folder


def _own_sidecar(
    where: str | Path, checkpoint: Checkpoint
) -> tuple[str | None, tuple[int, ...] | None, bool | None]:
    """Return template, suffix and norm from the reconstructor's own sidecar, after checks."""
    file = next((found for name in sidecar.SIDECARS if (found := stored(where, name))), None)
    if file is None:
        return None, None, None
    tree = sidecar.read(file)
    values, _ = dialects.find_fields(tree, str(file))
    for name in ("layer", "d_model"):
        mine, other = values.get(name), getattr(checkpoint, name)
        if mine is not None and mine != other:
            raise CheckpointError(
                f"{file}: {name} is {mine}, the verbalizer's is {other}. Use the verbalizer and "
                "reconstructor of one checkpoint."
            )
    suffix = values.get("ar_suffix_ids")
    stripped = tree.get("final_norm_stripped") if isinstance(tree, dict) else None
    return values.get("ar_template"), tuple(suffix) if suffix else None, stripped


def is_partial(adapter: str | Path, blocks: int) -> bool:
    """Return whether a PEFT adapter covers fewer blocks than its base without listing them.

    Args:
        adapter: The adapter's folder or Hub id.
        blocks: The number of blocks of its base.
    """
    from safetensors import safe_open

    config, weights = stored(adapter, PEFT), stored(adapter, PEFT_WEIGHTS)
    if config is None or weights is None:
        return False
    given = sidecar.read(config)
    if isinstance(given, dict) and given.get("layers_to_transform") is not None:
        return False
    with safe_open(weights, "pt") as tensors:
        found = {number for name in tensors.keys() for number in re.findall(r"\.(\d+)\.", name)}  # noqa: SIM118
    return 0 < len(found) < blocks


def _identity(where: str | Path, source: Any, checkpoint: Checkpoint) -> Tensor:
    """Return the identity as head of a full base model; a cut model must have a head file."""
    if isinstance(source, str | Path):
        cut = cut_config(where, checkpoint.layer, {}) is None
    else:
        cut = hosts.text_config(source).num_hidden_layers == checkpoint.layer + 1
    if cut:
        raise CheckpointError(f"{where} has no {HEAD}; a reconstructor's folder needs one.")
    warnings.warn(
        f"{where} has no {HEAD}: its blocks 0 to {checkpoint.layer} are used with the identity as "
        "head, as in a reconstructor before training. Its scores are only a lower bound.",
        NLAWarning,
        stacklevel=4,
    )
    return torch.eye(checkpoint.d_model, dtype=torch.float32, device="cpu")


def _matrix(file: Path) -> Tensor:
    tensors = _tensors(file)
    if list(tensors) != ["weight"] or tensors["weight"].ndim != 2:
        found = ", ".join(f"{name} {tuple(value.shape)}" for name, value in tensors.items())
        raise CheckpointError(f"{file} holds {found or 'nothing'}; expected one matrix, 'weight'.")
    return tensors["weight"].float()


def _tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
