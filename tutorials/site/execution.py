"""Where the outputs of executed notebooks are kept, and which notebooks are executed.

jupyter-cache finds outputs by a notebook's code. What that code *does* depends on the package and
on the libraries below it, so each state of those has a folder of its own: when nothing changed, a
build takes the outputs from it, and after a change every notebook is executed again. Comments and
docstrings do not count.
"""

from __future__ import annotations

import ast
import hashlib
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import nnsight_nla
from nnsight_nla.smollm2 import target
from nnsight_nla.storage.cache import cache_folder

# With ipywidgets installed (anywidget needs it) a progress bar would be a widget in the outputs:
# ours, and those of transformers, which follow the Hub's setting.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

FOLDER = Path(__file__).parents[1]
"""The folder of the notebooks."""
LIBRARIES = ("torch", "transformers", "nnsight", "plotly", "pandas")
KEPT = 8
"""How many states are kept; the oldest ones are removed."""
_REAL = 'pairs.load("smollm2")'
"""What the tutorials on SmolLM2 begin with."""


def cache() -> Path:
    """Return the folder for the outputs of this state, and remove those of the oldest states."""
    states = cache_folder() / "site"
    states.mkdir(parents=True, exist_ok=True)
    this = states / state()
    this.mkdir(exist_ok=True)
    os.utime(this)
    by_age = sorted(states.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
    for old in by_age[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)
    return this


def state() -> str:
    """Return a digest of everything below the notebooks: the package's files, and the libraries."""
    digest = hashlib.sha256(sys.version.encode())
    for name in LIBRARIES:
        digest.update(f"{name} {version(name)}\n".encode())
    digest.update(repr(target.wheel_file() is None).encode())
    package = Path(nnsight_nla.__file__).parent
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(_content(path))
    return digest.hexdigest()[:16]


def _content(path: Path) -> bytes:
    """Return what a file does: of Python, everything but comments, layout and docstrings."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_string(each)]  # pyright: ignore
    return ast.dump(tree).encode()


def _is_string(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def not_executed() -> list[str]:
    """Return the notebooks that cannot be executed here.

    The remote one needs a host (tests/ndif executes it), and those on SmolLM2 its weights.
    """
    without = ["remote.ipynb"]
    if target.wheel_file() is None:
        without += [
            path.name
            for path in sorted(FOLDER.glob("*.ipynb"))
            if _REAL in path.read_text("utf-8").replace('\\"', '"')
        ]
    return without
