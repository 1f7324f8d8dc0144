"""Redirect module paths from before the folders to the new modules, with a `DeprecationWarning`."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from types import ModuleType
from typing import Any

_FOLDERS = {
    "bulk": {
        "parts": "chunk_store",
        "patience": "retry",
        "places": "token_selection",
        "whole": "finished_file",
        "work": "pipeline",
    },
    "checkpoint": {"presets": "presets", "prompting": "prompt", "sidecar": "sidecar"},
    "cli": {"look": "explain", "shell": "app"},
    "core": {
        "baseline": "baseline",
        "injection": "injection",
        "sampling": "sampling",
        "scoring": "similarity",
        "trust": "trust",
    },
    "doctor": {"checkup": "precheck", "diagnosis": "report", "variants": "variants"},
    "evaluation": {
        "claims": "claims",
        "compare": "compare",
        "controls": "controls",
        "direction": "direction",
        "evaluate": "evaluate",
        "judge": "trust_labels",
        "reconstructor": "reconstructor",
        "score": "score",
    },
    "experiments": {
        "alignment": "positions",
        "bridge": "model_interface",
        "cells": "records",
        "envoys": "model_interface",
        "host": "model_interface",
        "setting": "plan",
        "sites": "forward",
        "texts": "records",
        "vectors": "plan",
    },
    "explanation": {"arguments": "arguments", "capture": "records", "caveats": "caveats"},
    "models": {
        "hosts": "hosts",
        "layouts": "reconstructor_files",
        "lens": "bridge",
        "loading": "loading",
        "placement": "memory",
        "sharing": "adapter",
    },
    "reading": {"read": "read"},
    "remote": {"ndif": "ndif", "wire": "wire"},
    "training": {"fitting": "compatibility"},
    "verbalize": {
        "engine": "decoding",
        "likelihood": "likelihood",
        "queue": "pending",
        "verbalizer": "verbalizer",
    },
    "view": {"glyphs": "escaping", "parts": "table"},
}
_NESTED = ("bulk", "cli", "experiments", "training", "view")  # These were folders already.
MOVED = {
    f"nnsight_nla.{folder}.{old}" if folder in _NESTED else f"nnsight_nla.{old}": (
        f"nnsight_nla.{folder}.{new}"
    )
    for folder, names in _FOLDERS.items()
    for old, new in names.items()
} | {"nnsight_nla.bulk.fingerprint": "nnsight_nla.models.fingerprint"}
"""Old module path to the new one."""


class Moved(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds and loads a module by its old path."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a specification for an old path, ``None`` for any other."""
        del path, target
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """Import the module by its new path and warn."""
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}.", DeprecationWarning, stacklevel=2)
        module = importlib.import_module(new)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's own specification, which the import system has replaced."""
        module.__spec__ = self._spec


def install() -> None:
    """Make the old paths importable."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.append(Moved())
