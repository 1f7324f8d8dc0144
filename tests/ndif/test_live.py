"""``view --remote``: a page on this machine, whose forward passes and texts are the host's."""

import json
import queue
import threading
import urllib.request
from collections.abc import Iterator

import pytest
import uvicorn
from websockets.sync.client import connect

from nnsight_nla import tiny
from nnsight_nla.cli import app
from nnsight_nla.cli import view as command
from nnsight_nla.live.runs import Runner

PARIS = "What a lovely day! People in Paris speak"


@pytest.fixture
def address(ndif, as_installed, by_path, monkeypatch) -> Iterator[str]:
    """Where ``nnsight-nla view --remote`` serves its page."""
    started, servers = queue.Queue(), []

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            servers.append(self)

    monkeypatch.setattr(uvicorn, "Server", Server)
    monkeypatch.setattr(command, "open_address", started.put)
    av, target = (by_path(tiny.paths()[role]) for role in ("av", "target"))
    options = ["--av", av, "--target", target, "--remote", "--port", "0", "--open"]

    def serve() -> None:
        try:
            app(["view", PARIS, *options], standalone_mode=False)
        except BaseException as error:
            started.put(error)

    running = threading.Thread(target=serve)
    running.start()
    try:
        found = started.get(timeout=120)
        if isinstance(found, BaseException):
            raise found
        yield found
    finally:
        for server in servers:
            server.should_exit = True
        running.join(timeout=60)


def until(socket, kind) -> dict:
    """The next message of this type; an error is none."""
    while True:
        message = json.loads(socket.recv(timeout=120))
        assert message["type"] != "error", message
        if message["type"] == kind:
            return message


def test_a_page_is_read_by_the_host(address):
    local = tiny.load()[1].read(tiny.load()[0], PARIS, positions=-1)[-1]
    with urllib.request.urlopen(address, timeout=10) as page:
        assert b"nnsightNla" in page.read()
    with connect(f"{address.replace('http', 'ws')}socket") as socket:
        run = until(socket, "run")
        last = run["reading"]["tokens"][-1]
        assert (last["t"], last.get("x")) == ("␣speak", None)
        wanted = {"type": "explain", "id": 1, "run": run["run"], "positions": [last["p"]]}
        socket.send(json.dumps(wanted))
        token = until(socket, "token")["token"]
        assert token["x"] == local.explanation
        assert token["next"][0][0] == "␣French"
        loaded = f"nla = NLA({str(tiny.paths()['av'])!r}, remote=True)"
        assert {loaded, f"with model.trace({PARIS!r}, remote=True):"} <= set(
            token["code"].split("\n")
        )
        until(socket, "done")
        patch = {"type": "patch", "source": [run["run"], 4], "target": [run["run"], last["p"]]}
        socket.send(json.dumps({**patch, "id": 2}))
        assert until(socket, "result")["kl"] > 0


def test_a_run_is_continued_by_the_host(ndif, as_installed, target):
    model, nla = tiny.load()
    there, here = (Runner(each, [nla], remote=each is target) for each in (target, model))
    runs = [runner.open(PARIS)[0] for runner in (there, here)]
    texts = [runner.continued(run, ()) for runner, run in zip((there, here), runs, strict=True)]
    assert texts[0] == texts[1] != ""
    assert [run.following[-1][0][0] for run in runs] == [" French", " French"]
