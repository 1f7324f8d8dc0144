"""Copies of a checkpoint's folder with something changed in it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor


def copied(source: Path, folder: Path) -> Path:
    """Copy a folder, without the permissions of an installed package."""
    shutil.copytree(source, folder)
    return folder


def edit_json(folder: Path, name: str, **values: Any) -> Path:
    """Change entries of a JSON file of `folder`; ``None`` removes one."""
    file = folder / name
    tree = json.loads(file.read_text("utf-8")) if file.exists() else {}
    tree = {key: value for key, value in {**tree, **values}.items() if value is not None}
    file.write_text(json.dumps(tree), "utf-8")
    return folder


def edit_sidecar(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Call `change` with the parsed sidecar of `folder`, and write it back."""
    (folder / "nla_calibration.json").unlink(missing_ok=True)  # It is of the one before.
    file = folder / "nla_meta.yaml"
    tree = yaml.safe_load(file.read_text("utf-8"))
    change(tree)
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), "utf-8")
    return folder


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """Replace the weights of `folder` with ``change(weights)``."""
    file = folder / "model.safetensors"
    changed = {name: each.contiguous() for name, each in change(load_file(file)).items()}
    save_file(changed, file, metadata={"format": "pt"})
    return folder
