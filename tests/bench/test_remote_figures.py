"""What a remote run sends and gets back, measured on a real NDIF server.

Run with ``pytest tests/bench/test_remote_figures.py -s``; skipped where the server's environment is
not installed (``python -m tests.ndif.install``).
"""

import nnsight
import pytest
import torch
from nnsight import TransformersModel
from nnsight.intervention.backends.remote import RemoteBackend

from nnsight_nla import NLA, tiny

PARIS = "What a lovely day! People in Paris speak"
KIB = 1024


@pytest.fixture
def traffic(ndif, monkeypatch):
    """Bytes of each request and of each result, as they are on the wire."""
    sent: list[int] = []
    received: list[int] = []
    serialize, finalize = RemoteBackend._serialize, RemoteBackend.finalize

    def count_request(self, tracer):
        blob = serialize(self, tracer)
        sent.append(len(blob))
        return blob

    def count_result(self, content):
        received.append(len(content))
        return finalize(self, content)

    monkeypatch.setattr(RemoteBackend, "_serialize", count_request)
    monkeypatch.setattr(RemoteBackend, "finalize", count_result)
    # An installed package is not shipped unasked, as a checkout's modules are.
    monkeypatch.setattr(nnsight.ndif, "_PULLED_ENV", True)
    return sent, received


@pytest.fixture
def target(by_path) -> TransformersModel:
    return TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")


def test_what_explain_adds_to_a_request_and_to_its_result(traffic, target):
    sent, received = traffic
    nla = NLA(tiny.paths()["av"], dtype=torch.float32)
    with target.trace(PARIS, remote=True):
        last = target.model.layers[3].output[0, -1].save()
    with target.trace(PARIS, remote=True):
        first = nla.explain(nla.layer(target).output[0, -1])
    del first
    with target.trace(PARIS, remote=True):
        first = nla.explain(nla.layer(target).output[0, -1])
        second = nla.explain(nla.layer(target).output[0, -2])
        third = nla.explain(nla.layer(target).output[0, -3])
    del first, second, third
    with target.trace([PARIS] * 16, remote=True):
        every = nla.explain(nla.layer(target).output)
    vectors = every.vectors.numel() * every.vectors.element_size()
    line = len("        second = nla.explain(nla.layer(target).output[0, -2])\n")
    print(
        f"\nthe first explain() adds {sent[1] - sent[0]} bytes to a request of {sent[0]}; "
        f"two more add {sent[2] - sent[1]} (their source lines have {2 * line}); "
        f"{vectors} bytes of vectors come back in {received[3]}"
    )
    assert len(sent) == len(received) == 4, "no extra request for any number of explain() calls"
    assert sent[1] - sent[0] <= 8 * KIB
    assert sent[2] - sent[1] <= 2 * line
    assert received[3] <= 1.1 * vectors + 4 * KIB
    torch.testing.assert_close(every.vectors[0, -1], last.detach(), atol=1e-3, rtol=1e-3)


def test_a_slice_travels_without_the_storage_it_is_a_view_of(traffic, target):
    _, received = traffic
    nla = NLA(tiny.paths()["av"], dtype=torch.float32)
    with target.trace([PARIS] * 64, remote=True):
        one = nla.explain(nla.layer(target).output[0, -1])
    print(f"\none vector of {one.vectors.numel() * 4} bytes comes back in {received[0]}")
    assert received[0] <= 1.1 * one.vectors.numel() * 4 + 4 * KIB


def test_a_hundred_handles_in_two_requests_with_the_local_texts(traffic, by_path):
    sent, _ = traffic
    there = NLA(by_path(tiny.paths()["av"]), remote=True)
    here = NLA(tiny.paths()["av"], dtype=torch.float32)
    vectors = torch.randn(100, 128, generator=torch.Generator().manual_seed(1))
    handles = [there.explain(vector) for vector in vectors]
    there.resolve()
    print(
        f"\n100 handles in {len(sent)} requests of {sent} bytes; {vectors.numel() * 4} of vectors"
    )
    assert len(sent) <= 2
    assert sum(sent) <= vectors.numel() * 4 + len(sent) * 16 * KIB, "no weights, no whole storage"
    assert [handle.raw for handle in handles] == here.explain(vectors).raw
