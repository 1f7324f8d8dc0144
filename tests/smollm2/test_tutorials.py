"""The tutorials on the small pair run on the real model with one word changed.

All but the shortest run with ``ALL_TUTORIALS=1 pytest tests/smollm2``: ten
minutes. Four others lead with the real model, and run on it in tests/tutorials.
"""

import json
import os
from pathlib import Path

import pytest

from tests.test_tutorials import FOLDER, SWITCHED
from tests.tutorials.test_results import LOADED, execute

nbformat = pytest.importorskip("nbformat")

SHORT = ("a_closed_loop",)
MORE = {
    "overnight": {'"--model", "tiny"': '"--model", "smollm2"'},
    "your_own_checkpoint": {
        "paths = tiny.paths()": "from nnsight_nla import smollm2; paths = smollm2.paths()",
        'options = {"dtype": "float32"}': 'options = {"target": model}',
    },
}
"""What else a notebook says of the pair."""


@pytest.mark.parametrize("name", SWITCHED)
def test_it_runs_on_the_real_model_with_one_word_changed(name, smol, tmp_path):
    if name not in SHORT and not os.environ.get("ALL_TUTORIALS"):
        pytest.skip("takes minutes: ALL_TUTORIALS=1 pytest tests/smollm2")
    text = (Path(FOLDER) / f"{name}.ipynb").read_text("utf-8")
    for old, new in {LOADED: LOADED.replace("tiny", "smollm2"), **MORE.get(name, {})}.items():
        old, new = (json.dumps(each)[1:-1] for each in (old, new))
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    execute(nbformat.reads(text, 4), name, tmp_path)
