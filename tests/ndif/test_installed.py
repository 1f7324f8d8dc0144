"""As a user has it: a wheel in a fresh virtual environment, and a host that has the package too."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from nnsight_nla import tiny

from . import install
from .server import TRUSTED_KEY, NdifServer

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"
LIGHT = ("jaxtyping", "wadler-lindig", "einops", "tenacity")
"""What the package imports and an NDIF server lacks."""

SCRIPT = """
import json, sys
import nnsight_nla
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG
from nnsight_nla import NLA, tiny

url, key, target, av, both = json.loads(sys.argv[1])
CONFIG.API.HOST, CONFIG.API.APIKEY, CONFIG.APP.REMOTE_LOGGING = url, key, False
for path in (target, av):
    huggingface._ID_CACHE[path] = path
model = TransformersModel(target, task="text-generation")
nla = NLA(av, remote=both)
for _ in range(2):
    with model.trace("What a lovely day! People in Paris speak", remote=True):
        thought = nla.explain(nla.layer(model).output[0, -1])
print(json.dumps({
    "kind": type(thought).__name__,
    "text": thought.text,
    "package": nnsight_nla.__file__,
    "target_on": next(model._module.parameters()).device.type,
    "verbalizer_on": next(nla.av._module.parameters()).device.type,
}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel that a user would install."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip(sys.executable, "wheel", "--no-deps", "-w", str(folder), str(ROOT))
    (built,) = folder.glob("nnsight_nla-*.whl")
    return built


@pytest.fixture(scope="module")
def expected() -> str:
    """The local run's text."""
    model, nla = tiny.load()
    with model.trace("What a lovely day! People in Paris speak"):
        thought = nla.explain(nla.layer(model).output[0, -1])
    return thought.text


@pytest.mark.timeout(1200)
def test_a_wheel_in_a_fresh_environment(server, wheel, expected, tmp_path):
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    _pip(python, "install", "-c", str(CONSTRAINTS), str(wheel))
    for both in (False, True):
        found = _run(python, server.url, tmp_path, both=both)
        assert found["kind"] == "Explanation"
        assert found["text"] == expected
        assert str(tmp_path / "env") in found["package"]
        assert found["target_on"] == "meta"
        assert found["verbalizer_on"] == ("meta" if both else "cpu")


@pytest.mark.timeout(600)
def test_a_host_that_has_the_package_too(wheel, expected, tmp_path):
    if missing := install.missing():
        pytest.skip(missing)
    site = tmp_path / "site"
    _pip(sys.executable, "install", "--no-deps", "--target", str(site), str(wheel), *LIGHT)
    with NdifServer(install.NDIF.python, python_path=[site]) as server:
        has = [install.NDIF.python, "-c", "import nnsight_nla; print(nnsight_nla.__file__)"]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        where = subprocess.run(
            has, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert str(site) in where.stdout
        for both in (False, True):
            found = _run(sys.executable, server.url, tmp_path, both=both)
            assert found["kind"] == "Explanation"
            assert found["text"] == expected


def _run(python: str | Path, url: str, cwd: Path, *, both: bool) -> dict[str, str]:
    """Run the user's script outside the checkout."""
    script = cwd / "script.py"
    script.write_text(SCRIPT, "utf-8")
    weights = tiny.paths()
    given = json.dumps([url, TRUSTED_KEY, str(weights["target"]), str(weights["av"]), both])
    done = subprocess.run(
        [str(python), str(script), given], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _pip(python: str | Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "-q", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
