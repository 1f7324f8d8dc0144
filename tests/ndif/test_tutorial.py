"""The remote tutorial, executed against the loopback server as a reader would execute it."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from nnsight_nla import tiny

from .server import TRUSTED_KEY

NOTEBOOK = Path(__file__).parents[2] / "tutorials" / "remote.ipynb"


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_the_remote_tutorial(server, monkeypatch):
    monkeypatch.setenv("TUTORIAL_HOST", server.url)
    monkeypatch.setenv("TUTORIAL_KEY", TRUSTED_KEY)
    monkeypatch.setenv("TUTORIAL_TARGET", str(tiny.paths()["target"]))
    monkeypatch.setenv("TUTORIAL_AV", str(tiny.paths()["av"]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = [
        "".join(
            out.get("text", "") for out in cell.get("outputs", []) if out.get("name") == "stdout"
        )
        for cell in notebook.cells
    ]
    everything = "\n".join(printed)
    assert "About Paris, the capital of France; cheerful tone." in everything
    assert everything.count("weights are on: meta") == 2
    patched = next(text for text in printed if "Rome" in text)
    assert patched.index("About Rome") < patched.index("About Paris")
    assert "after the block" in printed[-2]
