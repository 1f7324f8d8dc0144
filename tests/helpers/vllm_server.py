"""A server that answers as ``nnsight-nla serve`` with the tiny verbalizer would, without vLLM."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch

from nnsight_nla import NLA, tiny
from nnsight_nla.verbalize.vllm import rows
from nnsight_nla.verbalize.vllm.settings import Settings

AV = tiny.paths()["av"]


class FakeServer(ThreadingHTTPServer):
    """Answers as a server of the tiny verbalizer would; its text is the vector's key."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        nla = NLA(AV, dtype="float32")
        tokenizer: Any = nla.av.tokenizer
        self.settings = Settings.of(nla.checkpoint, nla.prompt, str(AV)).text
        self.context, self.root = 4096, str(AV)
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
            model = {"id": "served", "root": self.root, "max_model_len": self.context}
            return {"data": [{**model, "parent": None}]}
        if path == "/nla/receipts":
            measured = [[key, self.places(key)] for key in body["keys"]]
            return {"receipts": [measured], "settings": self.settings}
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


class Handler(BaseHTTPRequestHandler):
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
        with suppress(ConnectionError):  # The client has left.
            self.wfile.write(text)

    def log_message(self, *_):
        pass


def wait_for(true, seconds: float = 20) -> None:
    """Wait until a function returns something true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@contextmanager
def serving() -> Iterator[FakeServer]:
    """Run one in a thread."""
    running = FakeServer()
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.shutdown()
        running.server_close()
        thread.join()
