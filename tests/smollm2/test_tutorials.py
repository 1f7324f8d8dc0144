"""The tutorials on the small pair run on the real model with one word changed.

The longer ones run with ``ALL_TUTORIALS=1 pytest tests/smollm2``: several minutes.
"""

import json
import os
from pathlib import Path

import pytest

from tests.test_tutorials import FOLDER, SWITCHED

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

LONG = ("overnight", "your_own_checkpoint")


@pytest.mark.parametrize("name", SWITCHED)
def test_it_runs_on_the_real_model_with_one_word_changed(name, smol, tmp_path):
    if name in LONG and not os.environ.get("ALL_TUTORIALS"):
        pytest.skip("takes minutes: ALL_TUTORIALS=1 pytest tests/smollm2")
    text = (Path(FOLDER) / f"{name}.ipynb").read_text("utf-8")
    word = json.dumps('PAIR = "tiny"')[1:-1]
    assert text.count(f'"{word}  #') == 1
    changed = nbformat.reads(
        text.replace(f'"{word}  #', f'"{word}  #'.replace("tiny", "smollm2")), 4
    )
    options = {"timeout": 600, "kernel_name": "python3"}
    nbclient.NotebookClient(
        changed, resources={"metadata": {"path": tmp_path}}, **options
    ).execute()
