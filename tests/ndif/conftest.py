"""A real NDIF server for the tests of this folder, and nnsight pointed at it.

`server` starts once per session. A test asks for `ndif` (its requests are trusted), for
`sandboxed_ndif` (they are not), or for `either_ndif` (it runs once with each): the same server, and
nnsight's configuration as it was afterwards. `by_path` makes a local folder a model's id, and
`target` is the tiny one by its id. Tests of what is sent use `as_installed`.
"""

from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import nnsight
import pytest
from nnsight import TransformersModel
from nnsight.modeling import huggingface
from nnsight.schema.config import CONFIG

from nnsight_nla import tiny

from . import install
from .server import TRUSTED_KEY, UNTRUSTED_KEY, NdifServer

# These two are imported by the server, in its own environment, and by nothing here.
collect_ignore = ["actors.py", "gate.py"]

_KEYS = {"trusted": TRUSTED_KEY, "sandboxed": UNTRUSTED_KEY}


@pytest.fixture(scope="session")
def server() -> Iterator[NdifServer]:
    """The server, started when the first test asks for it."""
    if missing := install.missing():
        pytest.skip(missing)
    with NdifServer(install.NDIF.python) as running:
        yield running


@pytest.fixture
def ndif(server: NdifServer, monkeypatch: pytest.MonkeyPatch) -> NdifServer:
    """`remote=True` goes to the server; the block runs in the model's process."""
    return _point_nnsight_at(server, TRUSTED_KEY, monkeypatch)


@pytest.fixture
def sandboxed_ndif(server: NdifServer, monkeypatch: pytest.MonkeyPatch) -> NdifServer:
    """`remote=True` goes to the server; the block runs in a process without the weights."""
    return _point_nnsight_at(server, UNTRUSTED_KEY, monkeypatch)


@pytest.fixture(params=sorted(_KEYS))
def either_ndif(
    request: pytest.FixtureRequest, server: NdifServer, monkeypatch: pytest.MonkeyPatch
) -> NdifServer:
    """`ndif`, then `sandboxed_ndif`."""
    return _point_nnsight_at(server, _KEYS[request.param], monkeypatch)


@pytest.fixture
def by_path(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], str]:
    """Turns a model's folder into an id that client and server both take, without the Hub.

    nnsight asks the Hub for the canonical spelling of every id it sends, and remembers it.
    """

    def model_id(folder: Path) -> str:
        monkeypatch.setitem(huggingface._ID_CACHE, str(folder), str(folder))
        return str(folder)

    return model_id


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of the server's logs below the failure of a test that used it."""
    report = yield
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(running, NdifServer):
        report.sections.append((f"NDIF logs in {running.logs}", running.tail()))
    return report


def _point_nnsight_at(
    server: NdifServer, api_key: str, monkeypatch: pytest.MonkeyPatch
) -> NdifServer:
    monkeypatch.setattr(CONFIG.API, "HOST", server.url)
    monkeypatch.setattr(CONFIG.API, "APIKEY", api_key)
    monkeypatch.setattr(CONFIG.API, "COMPRESS", True)
    monkeypatch.setattr(CONFIG.APP, "REMOTE_LOGGING", False)
    # `pytest -v` would set it: nnsight looks for a -v of its own in sys.argv.
    monkeypatch.setattr(CONFIG.APP, "DEBUG", False)
    return server


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnsight ships a checkout's modules unasked; an installed package is not helped like that."""
    monkeypatch.setattr(nnsight.ndif, "_PULLED_ENV", True)


@pytest.fixture
def target(by_path: Callable[[Path], str]) -> TransformersModel:
    """The tiny target as a client without weights has it."""
    return TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
