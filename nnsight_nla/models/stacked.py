"""Combine LoRA adapters, trained one on top of the other, into one adapter.

Reinforcement learning is often done with a new adapter, after the one of the supervised stage was
merged into the base. The verbalizer is then the base plus both::

    NLA(["you/av-sft", "you/av-rl"])                # in the order in which they were trained
    NLA.on(model, av=["you/av-sft", "you/av-rl"])

Each adapter adds ``scale * B @ A`` to a weight matrix, so their sum is one adapter of the summed
rank: the matrices A one below the other, the matrices ``scale * B`` side by side. It is written
once, to the cache, and is then an adapter like any other. The sidecar of the last adapter may name
those below it, as ids or as paths relative to its folder::

    training:
      base_adapters: [../av-sft]
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from ..checkpoint import sidecar
from ..errors import CheckpointError, shown
from ..storage.atomic import atomic_folder
from ..storage.cache import cache_folder
from .adapter import is_adapter
from .loading import adapter_base

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARTS = "stacked.json"
"""The file that names the adapters that a combined one was made from."""
KEY = "base_adapters"
_PREFIX = "base_model.model."
_TOKENIZER = (
    "tokenizer_config.json", "tokenizer.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "vocab.json", "merges.txt",
)  # fmt: skip


def one_adapter(source: Any) -> Any:
    """Return what a caller passed as a verbalizer, with several adapters combined into one.

    Args:
        source: A list of adapters, in the order in which they were trained. Anything else is
            returned as it is, unless it is an adapter whose sidecar names those below it. So is a
            list of one model that is no adapter.

    Raises:
        CheckpointError: One of the list is not a LoRA adapter that can be combined.
    """
    if isinstance(source, list | tuple):
        parts = [_checked(each) for each in cast("Sequence[Any]", source)]
        if not parts:
            raise CheckpointError(
                "The list of adapters is empty. Pass them in the order in which they were trained: "
                "NLA(['you/av-sft', 'you/av-rl'])."
            )
        if len(parts) == 1 and not is_adapter(parts[0]):
            return source  # Nothing to combine; what opens the models says what it expects.
    elif isinstance(source, str | Path):
        parts = _below(source)
    else:
        return source
    return source if parts == [source] else parts[0] if len(parts) == 1 else str(combined(parts))


def combined(parts: Sequence[str | Path]) -> Path:
    """Return the folder of one adapter that is the sum of several, made once and kept.

    Args:
        parts: The adapters, folders or Hub ids, in the order in which they were trained. Base,
            sidecar and tokenizer are those of the first and of the last that have them.

    Raises:
        CheckpointError: One of them is not a LoRA adapter of linear layers, or they do not fit.
    """
    files = [(_file(part, CONFIG), _file(part, WEIGHTS)) for part in parts]
    digest = hashlib.blake2b(digest_size=8)
    for pair in files:
        for file in pair:
            digest.update(hashlib.blake2b(file.read_bytes()).digest())
    extra = _extra_files(parts)
    for file in extra:
        digest.update(file.name.encode() + file.read_bytes())
    base = adapter_base(parts[0])
    digest.update(str(base).encode())
    name = "+".join(Path(part).name for part in parts)
    folder = cache_folder() / "stacked" / digest.hexdigest() / name
    if (folder / PARTS).is_file():
        return folder
    deltas = [_deltas(part, *pair) for part, pair in zip(parts, files, strict=True)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as new:
        _write(new, deltas, base)
        for file in extra:
            shutil.copyfile(file, new / file.name)
        (new / PARTS).write_text(json.dumps([str(part) for part in parts]), "utf-8")
    return folder


def _checked(adapter: Any) -> str | Path:
    if isinstance(adapter, str | Path):
        return adapter
    raise CheckpointError(
        f"The list of adapters has {shown(adapter)}: expected folders or Hub ids."
    )


def _below(adapter: str | Path) -> list[str | Path]:
    """Return the adapters that the sidecar of one names as below it, and itself."""
    if _stored(adapter, PARTS) is not None or _stored(adapter, CONFIG) is None:
        return [adapter]
    file = next((found for name in sidecar.SIDECARS if (found := _stored(adapter, name))), None)
    tree = None if file is None else sidecar.read(file)
    training = tree.get("training") if isinstance(tree, dict) else None
    named = training.get(KEY) if isinstance(training, dict) else None
    if not named:
        return [adapter]
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise CheckpointError(
            f"{file}: training.{KEY} is {shown(named)}, expected a list of folders or Hub ids."
        )
    folder = Path(adapter).expanduser()
    near = [folder / each if (folder / each).is_dir() else each for each in named]
    return [*near, adapter]


def _stored(where: str | Path, name: str) -> Path | None:
    """Return a file of a folder or a repository; ``None`` also where there is neither."""
    if not Path(where).expanduser().is_dir() and not sidecar.is_hub_id(str(where)):
        return None
    return sidecar.stored(where, name)


def _file(part: str | Path, name: str) -> Path:
    found = sidecar.stored(part, name, needed=True)
    if found is None:
        raise CheckpointError(
            f"{part} has no {name}, so it cannot be combined with other adapters. Pass folders or "
            "Hub ids of LoRA adapters in PEFT's format."
        )
    return found


def _extra_files(parts: Sequence[str | Path]) -> list[Path]:
    """Return the last sidecar and the last tokenizer among the adapters."""
    found: list[Path] = []
    for names in (sidecar.SIDECARS, _TOKENIZER):
        for part in reversed(parts):
            files = [file for name in names if (file := sidecar.stored(part, name)) is not None]
            if files:
                found += files
                break
    return found


def _deltas(part: str | Path, config: Path, weights: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return what an adapter adds to each module: A, and B with its scale, in float32."""
    from safetensors.torch import load_file

    given = sidecar.read(config)
    settings = cast("dict[str, Any]", given if isinstance(given, dict) else {})
    odd = [
        f"{name}={shown(settings.get(name))}"
        for name, plain in (
            ("use_dora", False),
            ("bias", "none"),
            ("modules_to_save", None),
            ("alpha_pattern", {}),
            ("fan_in_fan_out", False),
            ("peft_type", "LORA"),
        )
        if settings.get(name, plain) not in (plain, None)
    ]
    tensors = load_file(weights)
    sides = {side: f".lora_{side}.weight" for side in "AB"}
    others = [name for name in tensors if not name.endswith(tuple(sides.values()))]
    alpha = settings.get("lora_alpha")
    if odd or others or not isinstance(alpha, int | float):
        listed = ", ".join([*odd, *others[:2]]) or f"lora_alpha={shown(alpha)}"
        raise CheckpointError(
            f"{part} has {listed}: only plain LoRA matrices of linear layers can be added up. "
            "Merge the adapters into the base with PEFT, save it, and pass its folder."
        )
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, below in tensors.items():
        if name.endswith(sides["A"]):
            module = name.removesuffix(sides["A"]).removeprefix(_PREFIX)
            rank = below.shape[0]
            scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
            up = tensors[name.removesuffix(sides["A"]) + sides["B"]]
            found[module] = below.float(), up.float() * scale
    return found


def _write(
    folder: Path, deltas: Sequence[dict[str, tuple[Tensor, Tensor]]], base: str | None
) -> None:
    """Write the sum of adapters, with a rank for all modules and a scale of 1."""
    from safetensors.torch import save_file

    modules = list(dict.fromkeys(name for each in deltas for name in each))
    tensors: dict[str, Tensor] = {}
    for module in modules:
        have = [each[module] for each in deltas if module in each]
        widths = {(below.shape[1], up.shape[0]) for below, up in have}
        if len(widths) > 1:
            raise CheckpointError(
                f"The adapters are of different base models: {module} is {sorted(widths)} wide. "
                "Pass adapters of one base."
            )
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = torch.cat([below for below, _ in have])
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = torch.cat([up for _, up in have], dim=1)
    rank = max(each.shape[0] for name, each in tensors.items() if ".lora_A." in name)
    for name, each in tensors.items():
        missing = rank - each.shape[0 if ".lora_A." in name else 1]
        sides = (0, 0, 0, missing) if ".lora_A." in name else (0, missing)
        tensors[name] = torch.nn.functional.pad(each, sides).contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": rank,
        "target_modules": modules,
        "bias": "none",
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(config), "utf-8")
    save_file(tensors, folder / WEIGHTS)
