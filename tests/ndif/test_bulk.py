"""A data set on NDIF: the server goes away in the middle and comes back, the rows are the same."""

import json
import random
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from nnsight import TransformersModel

from nnsight_nla import NLA, HostError, Sampling, bulk, tiny
from nnsight_nla.bulk import residuals
from nnsight_nla.bulk.chunk_store import ChunkStore
from nnsight_nla.remote import ndif as host
from nnsight_nla.tiny.documents import sample
from nnsight_nla.verbalize import verbalizer

OPTIONS = {
    "positions": "last", "sampling": Sampling(max_new_tokens=6), "chunk": 3, "batch_size": 8,
    "vectors": True, "score": False,
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("as_installed")


@pytest.fixture
def corpus(tmp_path) -> Path:
    rng = random.Random(3)
    path = tmp_path / "corpus.jsonl"
    texts = [sample(rng, "Paris", "cheerful").text for _ in range(12)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), "utf-8")
    return path


def test_the_server_goes_away_and_comes_back(ndif, by_path, corpus, tmp_path, monkeypatch):
    model = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    nla = NLA(by_path(tiny.paths()["av"]), remote=True)
    output, whole = tmp_path / "out.parquet", tmp_path / "whole.parquet"
    flying, most, refused = set(), [0], [0]
    counted = counting(flying, most, refused)
    for module in (residuals, verbalizer):
        monkeypatch.setattr(module, "send", counted)
    undisturbed = bulk.run(nla, corpus, whole, model=model, remote=True, **OPTIONS)
    assert most[0] == 2  # The target's request and the verbalizer's, never more.
    assert refused[0] == 0

    def restart():
        while not ChunkStore(output).numbers():
            time.sleep(0.01)
        with ndif.away():
            # Longer than the tries of one request last: the run itself has to wait.
            deadline = time.monotonic() + 60
            while not refused[0] and time.monotonic() < deadline:
                time.sleep(0.1)

    restarting = threading.Thread(target=restart)
    restarting.start()
    report = bulk.run(nla, corpus, output, model=model, remote=True, **OPTIONS)
    restarting.join()
    assert refused[0] >= 1  # It did meet a host that was away.
    assert (report.rows, report.errors, report.chunks) == (12, 0, 4)
    assert output.read_bytes() == whole.read_bytes()
    assert all(each.device.type == "meta" for each in model._module.parameters())

    here, local = tiny.load(), tmp_path / "local.parquet"
    bulk.run(here[1], corpus, local, model=here[0], **OPTIONS)
    rows, expected = (pq.read_table(path).to_pylist() for path in (whole, local))
    assert [row["text"] for row in rows] == [row["text"] for row in expected]
    print(f"undisturbed {undisturbed.seconds:.1f} s, with a restart {report.seconds:.1f} s")


def counting(flying: set, most: list, refused: list):
    """`ndif.send`, noting how many requests are on their way at once, and how many gave up."""
    send = host.send

    def counted(request, what):
        flying.add(threading.get_ident())
        most[0] = max(most[0], len(flying))
        try:
            return send(request, what)
        except HostError:
            refused[0] += 1
            raise
        finally:
            flying.discard(threading.get_ident())

    return counted


def test_extract_on_the_host_is_extract_here(ndif, by_path, corpus, tmp_path):
    here, nla = tiny.load()
    there = TransformersModel(by_path(tiny.paths()["target"]), task="text-generation")
    found = []
    for model, remote in ((here, False), (there, True)):
        output = tmp_path / f"{remote}.parquet"
        bulk.extract(
            model, corpus, output, checkpoint=nla.checkpoint, positions="random:2", remote=remote,
            next_tokens=2,
        )  # fmt: skip
        found.append(pq.read_table(output).drop_columns("activation_vector").to_pylist())
    assert found[0] == found[1]
    assert len(found[0]) == 24
    assert all(len(row["next_tokens"]) == 2 for row in found[0])
