"""Imports point down the list below only, and importing the package stays light."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nnsight_nla

PACKAGE = Path(nnsight_nla.__file__).parent

# The architecture, top to bottom. Folders of one floor know nothing of each other.
FLOORS = (
    ("__init__", "cli"),
    ("pairs",),
    ("smollm2", "tiny"),
    ("live", "training"),
    ("nla",),
    ("bulk", "doctor", "experiments", "reading"),
    ("evaluation",),
    ("verbalize",),
    ("remote",),
    ("explanation",),
    ("models",),
    ("checkpoint",),
    ("core", "storage", "view"),
    ("_compat", "_moved", "_version", "errors", "progress"),
)
DEPTH = {name: depth for depth, names in enumerate(FLOORS) for name in names}
ALONE = ("_compat", "_moved", "_version", "errors", "progress", "view")
HEAVY = (
    "transformer_lens",
    "jinja2",
    "pyarrow",
    "pandas",
    "rich",
    "typer",
    "peft",
    "accelerate",
    "plotly",
    "starlette",
    "uvicorn",
    "anywidget",
)


def imported(source: str, module: tuple[str, ...], *, package: bool) -> Iterator[str]:
    """The first-level modules of ours that `source` imports, wherever in it the import stands."""
    home = ("nnsight_nla", *module) if package else ("nnsight_nla", *module[:-1])
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            targets = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = home[: len(home) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            targets = [base]
            if base == ("nnsight_nla",):
                names = [alias.name for alias in node.names]
                targets = [(*base, name if name in DEPTH else "__init__") for name in names]
        else:
            continue
        for target in targets:
            if target[0] == "nnsight_nla":
                yield target[1] if len(target) > 1 else "__init__"


def arrows() -> list[tuple[str, str, str]]:
    """(file, importing module, imported module) for every import between two of our modules."""
    found: list[tuple[str, str, str]] = []
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        package = parts[-1] == "__init__"
        module = parts[:-1] if package else parts
        name = module[0] if module else "__init__"
        for target in imported(file.read_text("utf-8"), module, package=package):
            if target != name:
                found.append((str(file.relative_to(PACKAGE)), name, target))
    return found


def test_every_module_has_its_place():
    top = {file.stem for file in PACKAGE.glob("*.py")}
    top |= {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert top - set(DEPTH) == set()


def test_imports_point_down():
    assert [arrow for arrow in arrows() if DEPTH[arrow[2]] <= DEPTH[arrow[1]]] == []


def test_modules_that_travel_or_only_show_import_nothing_of_ours():
    assert [arrow for arrow in arrows() if arrow[1] in ALONE] == []


def test_the_reader_of_imports_sees_every_form():
    beside = """
from . import models, NLA
from .view import explanation
import nnsight_nla.remote.wire
import torch
def late():
    from .tiny.world import facts
if TYPE_CHECKING:
    from nnsight_nla.core.injection import write
"""
    found = sorted(imported(beside, ("nla",), package=False))
    assert found == ["__init__", "core", "models", "remote", "tiny", "view"]
    below = "from . import world\nfrom .. import nla\nfrom ..view import explanation"
    for module, package in ((("tiny",), True), (("tiny", "build"), False)):
        assert sorted(imported(below, module, package=package)) == ["nla", "tiny", "view"]


def test_there_are_few_floors_and_they_are_folders():
    assert len(FLOORS) <= 14
    flat = {file.stem for file in PACKAGE.glob("*.py")} - {"__init__"}
    assert len(flat) <= 6


def _modules_after(statement: str) -> set[str]:
    script = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(ran.stdout.splitlines()[-1]))


def test_importing_the_package_brings_nothing_heavy():
    ours, theirs = _modules_after("import nnsight_nla"), _modules_after("import nnsight")
    assert "nnsight_nla.nla" in ours
    assert [name for name in HEAVY if name in ours - theirs] == []


def test_every_public_name_is_there():
    for name in nnsight_nla.__all__:
        assert getattr(nnsight_nla, name) is not None
