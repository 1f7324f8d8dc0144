"""The widget in a real JupyterLab: a cell shows the page, and a click is answered by the kernel."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

ROOT = Path(__file__).parents[2]
CELL = (
    "from nnsight_nla import live, tiny\n"
    "model, nla = tiny.load()\n"
    "page = live.view(model, nla, 'People in Paris speak')\n"
    "page"
)
ANOTHER = "print(nla.read(model, 'The cow lives in the', positions=-1)[-1].explanation)"
FOLDERS = (
    "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jupyterlab") is None,
    reason="no JupyterLab: pip install jupyterlab",
)


def cell(source: str, number: int) -> dict:
    kind = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {**kind, "id": f"cell{number}", "source": source}


@pytest.fixture
def lab(tmp_path) -> Iterator[str]:
    """The address of a notebook in a JupyterLab of its own."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [cell(CELL, 0), cell(ANOTHER, 1)]
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {"kernelspec": kernel}}
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "page.ipynb").write_text(json.dumps({**notebook, "cells": cells}), "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    home = {name: str(tmp_path / name) for name in FOLDERS}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}",
        "--ServerApp.port_retries=0", "--IdentityProvider.token=known", f"--notebook-dir={folder}",
        "--LabApp.news_url=", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    log = (tmp_path / "log").open("w")
    with log, subprocess.Popen(
        command, env={**os.environ, **home, "PYTHONPATH": path}, stdout=log, stderr=log
    ) as server:  # fmt: skip
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"{address}/api?token=known", timeout=5).close()
                    break
                except OSError:
                    assert server.poll() is None, (tmp_path / "log").read_text()
                    time.sleep(0.1)
            yield f"{address}/lab/tree/page.ipynb?token=known"
        finally:
            server.terminate()


def test_a_cell_shows_the_page_and_a_click_is_answered(
    lab: str, context: BrowserContext, screenshots
):
    page = context.new_page()
    page.goto(lab)
    expect(page.get_by_text("(ipykernel) | Idle")).to_be_visible(timeout=60_000)
    code = page.locator(".jp-CodeCell .cm-content")
    code.first.click(timeout=60_000)
    page.keyboard.press("Shift+Enter")
    chips = page.locator(".nla .tokens .t")
    expect(chips).to_have_count(4, timeout=90_000)
    chips.nth(3).click()
    expect(page.locator(".nla #details")).to_contain_text("Next: French", timeout=30_000)
    expect(page.locator(".nla #details")).to_contain_text("denominator", timeout=30_000)
    page.screenshot(path=screenshots / "jupyterlab.png")
    code.nth(1).click()
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-OutputArea-output pre").last).to_contain_text("cow", timeout=30_000)
    chips.nth(2).click()
    expect(page.locator(".nla #details")).to_contain_text("Starting a new fact", timeout=30_000)
