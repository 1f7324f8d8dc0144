"""A host that may be away: what is tried again, how often, and what the error says."""

import httpx
import pytest
import torch
from nnsight.intervention.backends.remote import RemoteError
from websocket import WebSocketConnectionClosedException

from nnsight_nla import HostError, tiny
from nnsight_nla.remote import ndif
from nnsight_nla.remote.ndif import HostStatus, send, transient


def http(code: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1/response/1")
    return httpx.HTTPStatusError(str(code), request=request, response=httpx.Response(code))


def caused(text: str, cause: Exception) -> RemoteError:
    error = RemoteError(text)
    error.__cause__ = cause
    return error


AGAIN = {
    "server down": ConnectionRefusedError(111, "Connection refused"),
    "dropped": ConnectionResetError("reset"),
    "timeout": TimeoutError("timed out"),
    "closed websocket": WebSocketConnectionClosedException("closed"),
    "HTTP 500 on a poll": http(500),
    "HTTP 503": http(503),
    "unreachable": httpx.ConnectError("refused"),
    "eviction": RemoteError("Replica was evicted while processing your request."),
    "submit failed": caused("Failed to send request: [Errno 111]", httpx.ConnectError("refused")),
}
NEVER = {
    "an error in the block": RemoteError("Traceback ...\nNameError: name 'x' is not defined"),
    "HTTP 404": http(404),
    "a bug here": KeyError("x"),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(ndif, "_LONGEST_WAIT", 0.0)


@pytest.mark.parametrize("case", AGAIN)
def test_a_passing_failure_is_tried_again_and_then_named(case):
    tries = []

    def request():
        tries.append(1)
        raise AGAIN[case]

    assert transient(AGAIN[case])
    with pytest.raises(HostError) as caught:
        send(request, "The request to verbalize 3 vectors")
    assert len(tries) == ndif.ATTEMPTS
    assert "The request to verbalize 3 vectors at http" in str(caught.value)
    assert f"({ndif.ATTEMPTS} of {ndif.ATTEMPTS} tries)" in str(caught.value)
    assert type(AGAIN[case]).__name__ in str(caught.value)
    assert caught.value.__cause__ is AGAIN[case]


@pytest.mark.parametrize("case", AGAIN)
def test_a_host_that_comes_back_is_enough(case):
    failures = [AGAIN[case]] * (ndif.ATTEMPTS - 1)

    def request():
        if failures:
            raise failures.pop()
        return "the result"

    assert send(request, "A request") == "the result"


@pytest.mark.parametrize("case", NEVER)
def test_anything_else_is_not_tried_again(case):
    tries = []

    def request():
        tries.append(1)
        raise NEVER[case]

    assert not transient(NEVER[case])
    with pytest.raises(HostError if case == "an error in the block" else type(NEVER[case])):
        send(request, "A request")
    assert tries == [1]


def test_an_error_of_the_block_is_named_by_its_last_line():
    def request():
        raise NEVER["an error in the block"]

    with pytest.raises(HostError, match="last: RemoteError: NameError: name 'x' is not defined"):
        send(request, "A request")


@pytest.mark.parametrize(
    ("target", "verbalizer", "ways"),
    [
        ("RUNNING", "absent", ["target on the host, verbalizer here"]),
        ("RUNNING", "RUNNING", ["target on the host", "verbalizer on the host"]),
        ("absent", "absent", ["run target and verbalizer here"]),
    ],
)
def test_status_names_the_ways_that_apply(target, verbalizer, ways):
    status = HostStatus("http://host", True, target, verbalizer, False)
    assert len(status.ways) == len(ways)
    assert all(part in way for part, way in zip(ways, status.ways, strict=True))
    assert all(way in str(status) for way in status.ways)


def test_status_reads_the_hosts_deployments(nla, monkeypatch):
    import nnsight

    key = 'nnsight.modeling.transformers.TransformersModel:{"repo_id": "%s", "revision": null}'
    target, av = nla.checkpoint.base_model, str(tiny.paths()["av"])
    deployments = {
        "a": {"model_key": key % target, "application_state": "RUNNING"},
        "b": {"model_key": key % av, "application_state": "DEPLOYING"},
        "c": {"model_key": "no key at all"},
    }
    monkeypatch.setattr(nnsight, "status", lambda raw: {"deployments": deployments})
    found = nla.status()
    assert (found.reachable, found.target, found.verbalizer) == (True, "RUNNING", "DEPLOYING")
    monkeypatch.setattr(nnsight, "status", lambda raw: {})
    assert not nla.status().reachable


def test_a_third_partys_injection_travels_as_source(monkeypatch):
    from cloudpickle.cloudpickle import _PICKLE_BY_VALUE_MODULES

    from nnsight_nla.core.injection import OPERATIONS

    home = f"{__name__}_of_somebody"

    def blend(hidden, vectors, scale):
        return hidden

    blend.__module__ = home
    monkeypatch.setitem(OPERATIONS, "blend", blend)
    monkeypatch.setitem(OPERATIONS, "lerp", torch.lerp)  # The host has torch.
    assert home not in _PICKLE_BY_VALUE_MODULES
    assert send(lambda: 5, "The request") == 5
    assert home in _PICKLE_BY_VALUE_MODULES
    assert "torch" not in _PICKLE_BY_VALUE_MODULES
    _PICKLE_BY_VALUE_MODULES.discard(home)
