"""The folder for what is computed or paid for once and kept on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``NNSIGHT_NLA_CACHE``, or a folder in the user's cache."""
    chosen = os.environ.get("NNSIGHT_NLA_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nnsight_nla"
