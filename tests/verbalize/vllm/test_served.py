"""The client of a vLLM server, against a server that does what the test says."""

import base64
import io
import json
import math
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nnsight_nla import NLA, Checkpoint, CheckpointError, HostError, VerbalizationError, bulk, tiny
from nnsight_nla.bulk.retry import host_is_away
from nnsight_nla.checkpoint.checkpoint import ORACLE_TEMPLATE
from nnsight_nla.remote import ndif
from nnsight_nla.verbalize.vllm import rows, served
from nnsight_nla.verbalize.vllm.settings import Settings

AV = tiny.paths()["av"]
VECTORS = torch.randn(24, 128, generator=torch.Generator().manual_seed(0))


class FakeServer(ThreadingHTTPServer):
    """Answers as a server of the tiny verbalizer would; its text is the vector's key."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        nla = NLA(AV, dtype="float32")
        tokenizer: Any = nla.av.tokenizer
        self.settings = Settings.of(nla.checkpoint, nla.prompt).text
        self.encode = tokenizer.encode
        self.bodies, self.failures, self.delay = [], [], 0.0
        self.running = self.most = 0
        self.seen, self.guard, self.headers = set(), threading.Lock(), []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def answer(self, path, body):
        if path == "/nla/verbalizer":
            return {"settings": self.settings, "dtype": "float32"}
        if path == "/v1/models":
            return {"data": [{"id": "served", "root": str(AV), "parent": None}]}
        if path == "/nla/receipts":
            return {"receipts": [[[key, self.places(key)] for key in body["keys"]]]}
        loaded = torch.load(io.BytesIO(base64.b64decode(body["prompt_embeds"])), weights_only=True)
        sent = loaded.to_dense()
        kinds = rows.decoded(sent)
        places = (kinds.vector | kinds.null).nonzero().flatten().tolist()
        with self.guard:
            self.bodies.append(body)
            self.seen |= set(zip(rows.keys(sent[places]).tolist(), places, strict=True))
        said: dict[str, Any] = {"token_ids": self.encode(str(places[0]), add_special_tokens=False)}
        if compared := body.get("logprob_token_ids"):
            shares = {f"token_id:{each}": -1.0 - n for n, each in enumerate(compared)}
            said["logprobs"] = {"top_logprobs": [{"token_id:7": -9.0, **shares}]}
        return {"choices": [said]}

    def places(self, key):
        return [[place, 1.0, 2.0, 1.0] for name, place in self.seen if name == key]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeServer

    def do_GET(self):
        self._do(None)

    def do_POST(self):
        self._do(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _do(self, body):
        server = self.server
        with server.guard:
            server.headers.append(self.headers.get("authorization"))
            server.running += self.path == "/v1/completions"
            server.most = max(server.most, server.running)
            status = server.failures.pop(0) if body and server.failures else 200
        time.sleep(server.delay)
        said = server.answer(self.path, body) if status == 200 else {"error": "not now"}
        with server.guard:
            server.running -= self.path == "/v1/completions"
        text = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(ndif, "_LONGEST_WAIT", 0.01)
    running = FakeServer()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def wait_for(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def remote(server, **vllm) -> NLA:
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
    server.settings = Settings.of(oracle.checkpoint, oracle.prompt).text
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
    monkeypatch.setattr(_Handler, "do_GET", lambda self: self._do({"get": True}))
    with pytest.raises(HostError, match="was not started to serve a verbalizer"):
        NLA(url=server.url, engine="vllm")


def test_a_server_of_another_injection_is_refused(server):
    nla = remote(server)
    server.settings = server.settings.replace('"layer": 1', '"layer": 2')
    with pytest.raises(CheckpointError, match=r"writes vectors as .*this verbalizer needs"):
        nla.explain(VECTORS[0]).raw  # noqa: B018


def test_a_vector_that_the_server_lost_is_an_error_of_its_row(server, monkeypatch):
    nla = remote(server)
    monkeypatch.setattr(server, "places", lambda key: [])
    handle = nla.explain(VECTORS[:2])
    nla.resolve(handle)
    assert sorted(handle.errors) == [(0,), (1,)]
    salts = [body.get("cache_salt") for body in server.bodies]
    assert salts[:2] == [None, None]
    assert len(set(salts[2:])) == 2


def test_another_vector_than_ours_is_an_error_of_its_row(server, monkeypatch):
    nla = remote(server)
    place = nla.prompt.marker_position
    monkeypatch.setattr(server, "places", lambda key: [[place, 1.0, 2.0, 0.1]])
    handle = nla.explain(VECTORS[0])
    nla.resolve(handle)
    assert "the cosine between it and what was added is 0.100" in handle.errors[()]


def test_the_key_of_the_server_is_sent(server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    remote(server)
    assert set(server.headers) == {"Bearer secret"}


def test_options_of_vllm_are_the_servers(server):
    with pytest.raises(VerbalizationError, match="belong to the server's command"):
        remote(server, max_num_seqs=4)


def test_an_nla_of_a_server_pickles_by_its_address(server):
    import pickle

    nla = remote(server)
    again = pickle.loads(pickle.dumps(nla))
    assert again.url == server.url
    assert nla.spec is not None
    assert nla.spec["url"] == server.url
