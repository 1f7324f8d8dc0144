"""Killed, out of disk, shared among machines: the finished file has the same bytes, always."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from nnsight_nla import NLA, NLAError, Sampling, bulk
from nnsight_nla.bulk.chunk_store import ChunkStore
from nnsight_nla.tiny.documents import sample
from tests.helpers.processes import run, start

SHORT = Sampling(max_new_tokens=3)
DOCUMENTS, CHUNK = 24, 3


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Documents of the tiny world, and two that cannot be read."""
    rng = random.Random(9)
    texts = [sample(rng, "Paris", "cheerful").text for _ in range(DOCUMENTS - 2)]
    lines = [json.dumps({"id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    lines[5:5] = ['{"id": "bad", "text": 3}', "no JSON"]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def explain(pair, corpus: Path, output: Path, **options) -> bulk.Report:
    model, nla = pair
    settings = {"positions": "last", "sampling": SHORT, "vectors": True, "batch_size": 8}
    return bulk.run(nla, corpus, output, model=model, **{**settings, "chunk": CHUNK, **options})


@pytest.fixture(scope="module")
def undisturbed(pair, corpus, tmp_path_factory) -> tuple[bytes, bytes]:
    """The finished file and its sidecar, of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("whole") / "out.parquet"
    report = explain(pair, corpus, output)
    assert (report.rows, report.errors, report.chunks) == (DOCUMENTS, 2, DOCUMENTS // CHUNK)
    return both(output)


def both(output: Path) -> tuple[bytes, bytes]:
    return output.read_bytes(), output.with_name(f"{output.name}.nla_meta.yaml").read_bytes()


def in_a_fork(work) -> int:
    """Start `work` in a copy of this process, with the models in memory; gives its id."""
    child = os.fork()
    if child:
        return child
    try:
        torch.set_num_threads(1)
        work()
        os._exit(0)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
        os._exit(1)


def kept(output: Path) -> dict[str, tuple[int, int]]:
    """The finished chunks, as the file system knows them."""
    found = {path: path.stat() for path in ChunkStore(output).folder.glob("*.parquet")}
    return {path.name: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_killed_at_any_moment_it_goes_on_where_it_was(pair, corpus, undisturbed, tmp_path):
    torch.set_num_threads(1)  # As in the forks: the same machine is the same number of threads.
    began = time.monotonic()
    explain(pair, corpus, tmp_path / "timed.parquet")
    whole = time.monotonic() - began
    kills = caught = 0
    for seed in range(25):
        rng = random.Random(seed)
        output = tmp_path / f"{seed}.parquet"
        before: dict[str, tuple[int, int]] = {}
        for attempt in range(3):
            child = in_a_fork(lambda output=output: explain(pair, corpus, output))
            if attempt < 2:
                time.sleep(rng.uniform(0, whole))
                os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            kills += 1
            caught += ChunkStore(output).folder.exists() and not output.exists()
            now = kept(output)
            if not output.exists():  # Else the kill came while the chunks were being removed.
                assert before.items() <= now.items()  # Nothing is lost, nothing made again.
            before = now
        explain(pair, corpus, output)
        assert both(output) == undisturbed, f"seed {seed}"
        assert not ChunkStore(output).folder.exists()
        assert [path.name for path in tmp_path.glob("*.tmp")] == []
    print(f"{kills} kills, {caught} of them in the middle; an undisturbed run takes {whole:.2f} s")
    assert caught >= 15


def test_the_command_itself_killed_and_typed_again(pair, corpus, tmp_path):
    command = ("from nnsight_nla.cli import main; main()", "run", corpus)
    options = ["--positions", "last", "--max-new-tokens", "3", "--chunk", "2", "--batch-size", "8"]
    environment = {"OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    output, other = tmp_path / "killed.parquet", tmp_path / "whole.parquet"
    deadline = time.monotonic() + 120
    with start(*command, output, *options, environment=environment) as process:
        while len(ChunkStore(output).numbers()) < 3 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = kept(output)
    assert 3 <= len(before) < DOCUMENTS // 2
    done = run(*command, output, *options, "--json", environment=environment)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["resumed"], told["chunks"]) == (len(before), DOCUMENTS // 2 - len(before))
    torch.set_num_threads(1)
    explain(pair, corpus, other, chunk=2, vectors=False)
    assert both(output) == both(other)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, and what changes its size or its mode."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if mounted.returncode:
        pytest.skip(f"a file system cannot be mounted here: {mounted.stderr.strip()}")

    def remount(option: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)

    yield disk, remount
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_keeps_what_is_done(pair, corpus, undisturbed, small_disk):
    disk, remount = small_disk
    output, size, kinds, before = disk / "out.parquet", 16, set(), {}
    while not output.exists():
        try:
            explain(pair, corpus, output)
        except NLAError as error:
            message = str(error)
            assert message.startswith(f"The disk of {disk}")
            assert (
                "Free some space. What is finished is kept: rerun with the same arguments"
                in message
            )
            # The folder or a chunk, and at last the finished file, while all chunks are kept.
            kinds.add(message.split("could not")[0].split(": ")[1].strip())
            assert not output.exists()
            assert before.items() <= kept(output).items()
            before = kept(output)
        size += 24
        remount(f"size={size}k")
    assert {"000000.parquet", "out.parquet"} & kinds
    assert len(kinds) >= 3
    assert both(output) == undisturbed


def test_a_read_only_place_is_said_and_left_as_it_is(pair, corpus, small_disk, tmp_path):
    disk, remount = small_disk
    remount("ro")
    with pytest.raises(NLAError, match=r"out\.parquet\.parts cannot be written \(Read-only file"):
        explain(pair, corpus, disk / "out.parquet")
    assert list(disk.iterdir()) == []
    with pytest.raises(NLAError, match=r"the folder .*nowhere does not exist\. Create it"):
        explain(pair, corpus, tmp_path / "nowhere" / "out.parquet")


def test_shards_merge_to_the_bytes_of_an_unsharded_run(pair, corpus, undisturbed, tmp_path):
    outputs = [tmp_path / f"part{part}.parquet" for part in (1, 2, 3)]
    reports = [
        explain(pair, corpus, output, shard=f"{part}/3")
        for part, output in enumerate(outputs, start=1)
    ]
    assert sum(report.rows for report in reports) == DOCUMENTS
    merged = tmp_path / "merged.parquet"
    assert bulk.merge(outputs[::-1], merged) == (DOCUMENTS, 2)
    assert both(merged) == undisturbed
    with pytest.raises(NLAError, match="Shard 2/3 is missing"):
        bulk.merge([outputs[0], outputs[2]], merged)
    with pytest.raises(NLAError, match=r"part1\.parquet and .*part1\.parquet are both shard 1/3"):
        bulk.merge([outputs[0], outputs[0]], merged)
    other = tmp_path / "other.parquet"
    explain(pair, corpus, other, shard="2/3", skip=1)
    with pytest.raises(NLAError, match=r"not shards of one run:\n  skip: 0 before, 1 now"):
        bulk.merge([outputs[0], other, outputs[2]], merged)
    (tmp_path / "part1.parquet.nla_meta.yaml").unlink()
    with pytest.raises(NLAError, match=r"has no sidecar part1\.parquet\.nla_meta\.yaml next to it"):
        bulk.merge(outputs, merged)
    with pytest.raises(NLAError, match="nothing to merge"):
        bulk.merge([], merged)


def test_changed_settings_are_refused_with_the_difference(pair, corpus, tmp_path):
    output = tmp_path / "out.parquet"
    begin_only(pair, corpus, output)
    before = kept(output)
    changes = {
        "sampling": (Sampling(max_new_tokens=4), "sampling.max_new_tokens: 3 before, 4 now"),
        "positions": ("all", "positions: 'last' before, 'all' now"),
        "batch_size": (4, "batch_size: 8 before, 4 now"),
        "vectors": (False, "vectors: True before, False now"),
    }
    for name, (value, line) in changes.items():
        with pytest.raises(NLAError, match="was made with other settings") as caught:
            explain(pair, corpus, output, **{name: value})
        assert str(caught.value).splitlines()[1:-1] == [f"  {line}"]
    model, nla = pair
    options = {"model": model, "positions": "last", "sampling": SHORT, "vectors": True}
    injection = NLA(
        nla.av, ar=nla.ar, checkpoint=nla.checkpoint.injection.__class__("add", "block", 2)
    )
    with pytest.raises(NLAError, match=r"verbalizer\.injection\.layer: 1 before, 2 now"):
        bulk.run(injection, corpus, output, chunk=CHUNK, **options)
    edited = corpus.with_name("edited") / corpus.name
    edited.parent.mkdir()
    edited.write_text(corpus.read_text("utf-8").replace("Paris", "paris", 1), "utf-8")
    with pytest.raises(NLAError, match=r"input\.blake2b"):
        explain(pair, edited, output)
    assert kept(output) == before
    finished = tmp_path / "finished.parquet"
    explain(pair, corpus, finished)
    with pytest.raises(NLAError, match="samples: 1 before, 2 now"):
        explain(pair, corpus, finished, samples=2, sampling=Sampling(1.0, max_new_tokens=3))


def begin_only(pair, corpus: Path, output: Path) -> None:
    """A run that ends at its first bad row, with one chunk finished."""
    with pytest.raises(NLAError, match=r"Row 'bad': its 'text' is of type int, not a string"):
        explain(pair, corpus, output, strict=True)
    assert len(kept(output)) == 1


def test_a_changed_weight_is_noticed(pair, corpus, tmp_path):
    model, nla = pair
    live = NLA(model, checkpoint=nla.checkpoint)
    output = tmp_path / "out.parquet"
    model.repo_id, path = "live/target", model.repo_id
    weight = model._module.model.layers[2].mlp.down_proj.weight
    try:
        with pytest.raises(NLAError, match="Row 'bad'"):
            bulk.run(live, corpus, output, model=model, positions="last", chunk=3, strict=True,
                     sampling=SHORT)  # fmt: skip
        weight.data.mul_(1.5)
        with pytest.raises(NLAError, match=r"target\.weights: '\w+' before, '\w+' now"):
            bulk.run(live, corpus, output, model=model, positions="last", chunk=3, sampling=SHORT)
    finally:
        weight.data.div_(1.5)
        model.repo_id = path


def test_two_processes_do_not_write_one_output(pair, corpus, tmp_path):
    output = tmp_path / "out.parquet"
    with ChunkStore(output).open({"shard": None}):
        assert "Another process is writing" in refused(pair, corpus, output)
    assert "was made with other settings" in refused(pair, corpus, output)


def refused(pair, corpus: Path, output: Path) -> str:
    with pytest.raises(NLAError) as caught:
        explain(pair, corpus, output)
    return str(caught.value)


def test_a_strangers_file_is_not_replaced(pair, corpus, tmp_path):
    output = tmp_path / "out.parquet"
    output.write_bytes(corpus.read_bytes())
    assert "cannot be read as Parquet" in refused(pair, corpus, output)
    assert output.read_bytes() == corpus.read_bytes()
