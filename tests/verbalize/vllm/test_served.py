"""The client of a vLLM server, against a server that does what the test says."""

import json
import math
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from nnsight_nla import (
    NLA,
    Checkpoint,
    CheckpointError,
    HostError,
    NLAWarning,
    Sampling,
    VerbalizationError,
    bulk,
    tiny,
)
from nnsight_nla.bulk.retry import host_is_away
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.remote import ndif
from nnsight_nla.verbalize.vllm import served
from nnsight_nla.verbalize.vllm.settings import Settings
from tests.helpers.vllm_server import AV, FakeServer, Handler, serving, wait_for

VECTORS = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(ndif, "_LONGEST_WAIT", 0.01)
    with serving() as running:
        yield running


def remote(server: FakeServer, **vllm) -> NLA:
    return NLA(url=server.url, engine="vllm", vllm=vllm or None, dtype="float32")


def test_vectors_travel_and_texts_come_back(server):
    nla = remote(server)
    handle = nla.explain(VECTORS)
    assert set(handle.raw) == {str(nla.prompt.marker_position)}
    assert handle.receipt.injection_cosine == [1.0] * len(VECTORS)
    assert handle.receipt.dtype == "float32"
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 0.0, 200)
    assert body["stop"] == ["</explanation>"]
    assert len(body["prompt_embeds"]) < 16_000  # Sparse: not a row of 128 numbers for each token.
    assert nla.checkpoint == NLA(AV).checkpoint
    assert nla.info()["engine"]["url"] == server.url


def test_choices_are_compared_by_the_server(server, monkeypatch):
    asking = replace(Checkpoint.load(AV), template=ORACLE_TEMPLATE, calibration=None)
    oracle = NLA(AV, checkpoint=asking, url=server.url, engine="vllm", dtype="float32")
    server.settings = Settings.of(oracle.checkpoint, oracle.prompt, str(AV)).text
    answers = oracle.ask(VECTORS[:3], "Is it a city?", choices=["Yes", "No"])
    assert answers.text == "Yes"
    reply = answers.capture.replies[0, 0]
    # The server says -1 for the first token that is compared, -2 for the second: the tokens of
    # "Yes" are "Y" and, in a second request, "es".
    assert reply.probabilities == pytest.approx((0.5, 0.5), abs=1e-4)
    assert reply.mass == pytest.approx(2 * math.exp(-2))
    sizes = [(each["max_tokens"], len(each["logprob_token_ids"])) for each in server.bodies]
    assert sizes == [(1, 2), (1, 1)]
    assert server.bodies[0]["stop"] == []
    assert answers.receipt.injection_cosine == 1.0


def test_no_more_requests_are_under_way_than_asked_for(server):
    server.delay = 0.02
    remote(server, concurrency=3).explain(VECTORS).raw  # noqa: B018
    assert server.most <= 3
    assert len(server.bodies) == len(VECTORS)


def test_threads_share_what_is_under_way_and_the_earlier_comes_first(server):
    server.delay = 0.02
    nla = remote(server, concurrency=3)
    nla.info()
    handles = [nla.explain(VECTORS[:12]), nla.explain(VECTORS[12:])]
    order = []

    def read(handle):
        nla.resolve(handle)
        order.append(handle)

    threads = [threading.Thread(target=read, args=(each,)) for each in handles]
    for each in threads:
        each.start()
        wait_for(lambda: server.most == 3)
    for each in threads:
        each.join()
    assert server.most == 3
    assert order == handles
    assert len(server.bodies) == len(VECTORS)


def test_a_caller_that_stops_leaves_the_rest_pending_and_unsent(server):
    server.delay = 0.02
    nla = remote(server, concurrency=2)
    many = torch.randn(200, 128, generator=torch.Generator().manual_seed(1))
    handle = nla.explain(many)

    def stop(text):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nla.resolve(handle, on_text=stop)
    wait_for(lambda: server.running == 0)
    assert len(server.bodies) < len(many) / 2
    assert not handle.resolved
    nla.resolve(handle)
    assert handle.resolved


def test_bulk_keeps_the_server_full_while_it_scores(server, monkeypatch, tmp_path):
    save_file({"v": VECTORS}, tmp_path / "vectors.safetensors")
    scored = []

    def run(name, check):
        nla = NLA(url=server.url, engine="vllm", ar=tiny.paths()["ar"], dtype="float32")
        real = nla.reconstruct

        def reconstruct(texts):
            check()
            scored.append(len(texts))
            return real(texts)

        monkeypatch.setattr(nla, "reconstruct", reconstruct)
        output = tmp_path / name
        report = bulk.run(nla, tmp_path / "vectors.safetensors", output, chunk=8, progress=False)
        assert (report.rows, report.errors) == (len(VECTORS), 0)
        return output.read_bytes()

    def next_is_under_way():
        wait_for(lambda: len(server.bodies) >= 16)  # Those of two chunks.

    together = run("together.parquet", next_is_under_way)
    assert scored == [8, 8, 8]
    monkeypatch.setattr(NLA, "concurrent", False)
    server.bodies.clear()
    assert run("alone.parquet", lambda: None) == together


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server, status):
    nla = remote(server)
    nla.info()
    server.failures = [status] * 3
    assert len(nla.explain(VECTORS[:2]).raw) == 2


def test_a_server_that_refuses_is_quoted(server):
    nla = remote(server, concurrency=1)
    server.failures = [400]
    handle = nla.explain(VECTORS[:3])
    with pytest.raises(VerbalizationError, match=r"refused a request \(400\): .*not now.*3 of 3"):
        nla.resolve(handle)
    assert len(handle.raw) == 3  # They were still pending.


def test_a_server_that_is_away_is_waited_for_by_bulk(server):
    nla = remote(server)
    server.failures = [503] * 1000
    with pytest.raises(VerbalizationError) as raised:
        nla.explain(VECTORS[:3]).raw  # noqa: B018
    assert host_is_away(raised.value)
    assert ndif.ATTEMPTS == 4


def test_an_address_without_a_server_says_what_to_start(monkeypatch):
    monkeypatch.setattr(ndif, "_LONGEST_WAIT", 0.01)
    with pytest.raises(HostError, match=r"did not answer.*nnsight-nla serve AV"):
        NLA(url="http://127.0.0.1:9", engine="vllm")


def test_a_plain_vllm_server_is_refused(server, monkeypatch):
    monkeypatch.setattr(server, "answer", lambda path, body: {})
    monkeypatch.setattr(served, "VERBALIZER", "/nla/elsewhere")
    server.failures = [404]
    monkeypatch.setattr(Handler, "do_GET", lambda self: self._do({"get": True}))
    with pytest.raises(HostError, match="was not started to serve a verbalizer"):
        NLA(url=server.url, engine="vllm")


@pytest.mark.parametrize(
    ("ours", "theirs", "field"),
    [
        ('"layer": 1', '"layer": 2', "injection: Injection"),
        ('"layers": [3]', '"layers": [2]', r"layers: \(2,\), not \(3,\)"),
        ("tiny/weights/target", "another", "base_model: nnsight_nla/another, not "),
    ],
)
def test_a_server_of_another_verbalizer_is_refused(server, ours, theirs, field):
    nla = remote(server)
    assert ours in server.settings
    server.settings = server.settings.replace(ours, theirs)
    with pytest.raises(CheckpointError, match=f"another verbalizer than .*{field}"):
        nla.explain(VECTORS[0]).raw  # noqa: B018
    assert not server.bodies


def test_a_server_with_another_sidecar_is_named_in_a_warning(server):
    nla = remote(server)
    server.settings = server.settings.replace(str(nla.checkpoint.sidecar_hash), 64 * "0")
    with pytest.warns(NLAWarning, match="is another file than that of"):
        nla.explain(VECTORS[0]).raw  # noqa: B018


def test_a_server_that_comes_back_with_another_verbalizer_gives_no_text(server):
    nla = remote(server)
    nla.explain(VECTORS[0]).raw  # noqa: B018
    server.settings = server.settings.replace(str(AV), "another")
    handle = nla.explain(VECTORS[1:])
    with pytest.raises(CheckpointError, match="restarted with another verbalizer"):
        nla.resolve(handle)
    assert not handle.capture.replies


def test_a_folder_of_the_servers_machine_alone_is_named(server):
    server.root = "/models/of/the/server"
    with pytest.raises(
        CheckpointError, match=r"runs /models/of/the/server, .*NLA\('path or id', u"
    ):
        NLA(url=server.url, engine="vllm")
    assert NLA(AV, url=server.url, engine="vllm").explain(VECTORS[0]).raw


def test_an_interrupted_call_does_not_hold_up_the_next(server, monkeypatch):
    nla = remote(server, concurrency=1)
    usual, asked, free = server.answer, threading.Event(), threading.Event()

    def slow(path, body):
        if path == "/v1/completions" and not asked.is_set():
            asked.set()
            free.wait(30)
        return usual(path, body)

    monkeypatch.setattr(server, "answer", slow)
    handle = nla.explain(VECTORS[:3])
    main = threading.get_ident()

    def press() -> None:
        asked.wait(20)
        time.sleep(0.5)  # Until the thread of the request waits for its answer.
        signal.pthread_kill(main, signal.SIGINT)

    interrupt = threading.Thread(target=press)
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        nla.resolve(handle)
    interrupt.join()
    start = time.monotonic()
    assert nla.explain(VECTORS[4]).raw
    assert time.monotonic() - start < 10
    free.set()
    assert len(handle.raw) == 3


def test_entries_that_are_negative_zero_are_written(server):
    vector = VECTORS[0].clone()
    vector[::2] = -0.0
    handle = remote(server).explain(vector)
    assert handle.receipt.injection_cosine == 1.0
    assert len(server.bodies) == 1


def test_a_reply_that_the_server_would_cut_is_refused(server):
    server.context = 256
    nla = remote(server)
    with pytest.raises(VerbalizationError, match=r"exceed the 256 tokens .*max_model_len=\d+"):
        nla.explain(VECTORS[0], sampling=Sampling(max_new_tokens=250)).raw  # noqa: B018
    assert len(nla.explain(VECTORS[0], sampling=Sampling(max_new_tokens=20)).raw) > 0


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
def test_an_address_may_be_pasted_as_it_is(server, end):
    assert served.address(f"http://gpu-box:8000{end}") == "http://gpu-box:8000"
    assert NLA(url=server.url + end, engine="vllm").info()["engine"]["url"] == server.url


@pytest.mark.parametrize("url", ["localhost:8000", "", "ftp://x", "http://", "http://x:port", 5])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(VerbalizationError, match="expected the address that nnsight-nla serve pr"):
        NLA(url=url, engine="vllm")
    with pytest.raises(VerbalizationError, match="expected the address that nnsight-nla serve pr"):
        NLA(AV, url=url, engine="vllm")


def test_https_to_a_port_of_http_is_not_waited_for(server):
    nla = NLA(AV, url=server.url.replace("http", "https"), engine="vllm")
    with pytest.raises(HostError, match=r"did not answer; last: ConnectError: .*SSL") as raised:
        nla.info()
        nla.explain(VECTORS[0]).receipt  # noqa: B018
    assert not host_is_away(raised.value)


@pytest.mark.parametrize(("key", "said"), [("wrong", "refused the API key in"), (None, "wants an")])
def test_a_key_that_is_wrong_or_missing_is_named(server, monkeypatch, key, said):
    nla = remote(server)
    if key:
        monkeypatch.setenv(served.KEY, key)
    server.failures = [401] * 9
    with pytest.raises(VerbalizationError, match=rf"{said} .*VLLM_API_KEY \(401\)"):
        nla.explain(VECTORS[0]).raw  # noqa: B018
    assert server.headers[-1] == (f"Bearer {key}" if key else None)


@pytest.mark.parametrize("answer", [{}, [], "<html>", {"settings": ""}])
def test_another_server_at_the_address_is_refused(server, monkeypatch, answer):
    monkeypatch.setattr(server, "answer", lambda path, body: answer)
    if answer == "<html>":
        monkeypatch.setattr(json, "dumps", lambda said: said)
    with pytest.raises(HostError, match="answers, but not as a server of a verbalizer"):
        NLA(url=server.url, engine="vllm")


@pytest.mark.parametrize("number", [0, -1, "many", 2.5, True, None])
def test_a_wrong_concurrency_is_refused(number):
    with pytest.raises(VerbalizationError, match=r"'concurrency': .*expected the number of"):
        NLA(AV, url="http://gpu-box:8000", engine="vllm", vllm={"concurrency": number})
