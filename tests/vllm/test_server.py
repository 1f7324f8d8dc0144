"""A server that `nnsight-nla serve` starts: killed in the middle of a run, and left by a client."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import save_file

from nnsight_nla import NLA, CheckpointError, HostError, Injection, Sampling, bulk, tiny
from nnsight_nla.verbalize.vllm.served import CONCURRENCY
from tests.helpers import vllm_server

from .conftest import OPTIONS

AV = str(tiny.paths()["av"])
STARTS = 400
"""Seconds that a start may take."""
LONG = 400
wait_for = partial(vllm_server.wait_for, seconds=200)
WARM = Sampling(temperature=1.0, seed=3, max_new_tokens=60)


class Server:
    """`nnsight-nla serve` in a process group of its own; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        flags = [
            word
            for name, value in OPTIONS.items()
            for word in (f"--{name.replace('_', '-')}", *([] if value is True else [str(value)]))
        ]
        words = ["serve", AV, "--dtype", "float32", "--port", str(self.port), "--", *flags]
        main = "from nnsight_nla.cli import main; main()"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", main, *words], stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            assert self.process is not None
            assert self.process.poll() is None, self.log.read_text("utf-8")[-4000:]
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        pytest.fail(f"no server after {STARTS} s:\n{self.log.read_text('utf-8')[-4000:]}")

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def metric(self, name: str) -> float:
        answer = httpx.get(f"{self.url}/metrics", trust_env=False)
        assert answer.status_code == 200, answer.text
        lines = answer.text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        running.start()
        running.wait()
        yield running
    finally:
        running.kill()


def test_a_served_verbalizer_says_what_the_fast_engine_says(server, nla, vectors):
    served = NLA(url=server.url, engine="vllm", dtype="float32")
    assert served.checkpoint == nla.checkpoint
    found, expected = served.explain(vectors[:64]), nla.explain(vectors[:64])
    assert found.raw == expected.raw
    assert found.receipt.dtype == "float32"
    assert found.receipt.injection_cosine == pytest.approx([1.0] * 64, abs=1e-4)
    assert found.receipt.norm_after == pytest.approx(expected.receipt.norm_after, rel=1e-4)
    assert served.explain_nothing().raw == nla.explain_nothing().raw
    ours = served.explain(vectors[:16], samples=3, sampling=WARM).samples
    assert ours == nla.explain(vectors[:16], samples=3, sampling=WARM).samples


def test_a_server_of_another_injection_is_refused(server):
    other = NLA(AV, checkpoint=Injection("add", "block", 2), url=server.url, engine="vllm")
    with pytest.raises(CheckpointError, match=r"another verbalizer than .*injection: "):
        other.resolve(other.explain(torch.randn(128)))


def test_a_client_that_goes_away_leaves_nothing_running(server, nla, vectors, tmp_path):
    save_file({"v": vectors.repeat(4, 1)}, tmp_path / "vectors.safetensors")
    script = (
        "from nnsight_nla import NLA, Sampling; from safetensors.torch import load_file; "
        f"hot = Sampling(temperature=5.0, max_new_tokens={LONG}); "  # Seldom the closing tag.
        f"nla = NLA(url={server.url!r}, engine='vllm', sampling=hot); "
        f"nla.resolve(nla.explain(load_file({str(tmp_path / 'vectors.safetensors')!r})['v']))"
    )
    log = tmp_path / "client.log"
    with log.open("wb") as file:
        client = subprocess.Popen([sys.executable, "-c", script], stdout=file, stderr=file)
    under_way: list[float] = []

    def busy() -> bool:
        assert client.poll() is None, log.read_text("utf-8")
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        under_way.append(sum(map(server.metric, names)))
        return under_way[-1] > 4

    wait_for(busy)
    busy()
    generated = server.metric("vllm:generation_tokens_total{")
    client.kill()
    client.wait()
    assert max(under_way) <= CONCURRENCY < len(vectors)
    wait_for(lambda: server.metric("vllm:num_requests_running{") == 0)
    assert server.metric("vllm:num_requests_waiting{") == 0
    generated = server.metric("vllm:generation_tokens_total{") - generated
    assert generated < CONCURRENCY * LONG / 2, "they were generated to their end"
    served = NLA(url=server.url, engine="vllm")
    assert served.explain(vectors[70]).raw == nla.explain(vectors[70]).raw


def test_a_run_survives_its_server_and_is_byte_identical(server, vectors, tmp_path):
    source = tmp_path / "vectors.safetensors"
    save_file({"v": vectors}, source)
    options = {"chunk": 64, "progress": False}

    def run(output: str) -> bytes:
        served = NLA(url=server.url, engine="vllm", dtype="float32")
        report = bulk.run(served, source, tmp_path / output, **options)
        assert (report.rows, report.errors) == (256, 0)
        return (tmp_path / output).read_bytes()

    undisturbed = run("undisturbed.parquet")

    def disturb() -> None:
        folder = tmp_path / "disturbed.parquet.parts"
        wait_for(lambda: folder.is_dir() and len(list(folder.glob("*.parquet"))) >= 1)
        server.kill()
        server.start()

    thread = threading.Thread(target=disturb)
    thread.start()
    disturbed = run("disturbed.parquet")
    thread.join()
    assert disturbed == undisturbed
    server.wait()


def test_without_a_server_the_rows_stay_pending(server, nla, vectors):
    served = NLA(url=server.url, engine="vllm")
    handle = served.explain(vectors[:2])
    server.kill()
    with pytest.raises(HostError, match="did not answer"):
        served.resolve(handle)
    assert not handle.resolved
