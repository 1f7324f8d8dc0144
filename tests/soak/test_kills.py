"""Processes killed with SIGKILL at random moments; what is on disk is complete or absent."""

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from nnsight_nla import Reading, TokenReading
from nnsight_nla.bulk.chunk_store import ChunkStore
from nnsight_nla.storage.atomic import atomic_file, atomic_folder
from nnsight_nla.training import Settings
from tests.bulk.test_survives import (  # noqa: F401
    both,
    corpus,
    explain,
    in_a_fork,
    kept,
    undisturbed,
)
from tests.helpers.published import base, publish, records
from tests.training.test_run import SETTINGS, same, trained


def killed(work: Callable[[], object], after: float) -> bool:
    """Run `work` in a fork, kill it after so many seconds; return whether it was still running."""
    child = in_a_fork(work)
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def test_bulk_run(pair, corpus, undisturbed, tmp_path, figure):  # noqa: F811
    torch.set_num_threads(1)
    began = time.monotonic()
    explain(pair, corpus, tmp_path / "timed.parquet")
    whole = time.monotonic() - began
    kills = 0
    for seed in range(1000, 1160):
        rng = random.Random(seed)
        output = tmp_path / f"{seed}.parquet"
        before: dict[str, tuple[int, int]] = {}
        while not output.exists():
            if not killed(partial(explain, pair, corpus, output), rng.uniform(0, whole)):
                break
            kills += 1
            now = kept(output)
            assert output.exists() or before.items() <= now.items()
            before = now
        explain(pair, corpus, output)
        assert both(output) == undisturbed, f"seed {seed}"
        assert not ChunkStore(output).folder.exists()
        for path in tmp_path.iterdir():
            assert not path.name.endswith(".tmp")
            if path.name.startswith(f"{seed}."):
                path.unlink()
    figure("kills of a bulk run, then the same command again", kills, "same bytes, no row lost")
    assert kills >= 200


def reading(version: int) -> Reading:
    tokens = tuple(
        TokenReading(n, f"t{n}", "prompt", explanation=f"version {version}", norm=1.0)
        for n in range(200)
    )
    return Reading(tokens, "target", "verbalizer", 3)


KILLS = 300
WRITERS = {
    "atomic_file": lambda path, version: write_file(path, version),
    "parquet": lambda path, version: reading(version).to_parquet(path),
    "html": lambda path, version: reading(version).to_html(path),
    "folder": lambda path, version: write_folder(path, version),
}


def write_file(path: Path, version: int) -> None:
    with atomic_file(path) as file:
        for _ in range(50):
            file.write(f"version {version}\n".encode() * 50)


def write_folder(path: Path, version: int) -> None:
    with atomic_folder(path) as folder:
        for n in range(5):
            (folder / str(n)).write_text(f"version {version}")


def content(path: Path) -> object:
    if path.is_dir():
        return sorted((each.name, each.read_bytes()) for each in path.iterdir())
    return path.read_bytes()


@pytest.mark.parametrize("kind", WRITERS)
def test_a_writer(kind, tmp_path, figure):
    write = WRITERS[kind]
    complete = []
    for version in range(2):
        write(tmp_path / f"{version}", version)
        complete.append(content(tmp_path / f"{version}"))
    path = tmp_path / "output"
    began = time.monotonic()
    write(path, 0)
    took = time.monotonic() - began

    def work() -> None:
        for version in range(1, 10_000):
            write(path, version % 2)

    rng = random.Random(kind)
    for _ in range(KILLS):
        assert killed(work, rng.uniform(0, 4 * took))
        if kind != "folder" or path.exists():  # A folder is replaced in two renames.
            assert content(path) in complete
        write(path, 0)
        assert content(path) == complete[0]
    figure(
        f"kills while a file is replaced ({kind})", KILLS, "the old one or the new one, complete"
    )


def test_training(tmp_path, figure):
    torch.set_num_threads(1)
    base(tmp_path / "base")
    publish(tmp_path / "rows.parquet", records())
    settings = Settings(**{**vars(SETTINGS), "lora": None})
    began = time.monotonic()
    trained(tmp_path, "ar", tmp_path / "whole", settings)
    whole = time.monotonic() - began
    kills = 0
    for seed in range(40):
        rng, out = random.Random(seed), tmp_path / f"{seed}"
        for _ in range(2):
            kills += killed(
                lambda out=out: trained(tmp_path, "ar", out, settings), rng.uniform(0, whole)
            )
        if not out.exists():
            trained(tmp_path, "ar", out, settings)
        assert same(out, tmp_path / "whole"), f"seed {seed}"
        assert not out.with_name(f"{seed}.training").exists()
    figure("kills of a training, then the same command again", kills, "same weights")
    assert kills >= 40
