"""Measure the speed tables of the site; best on a machine that does nothing else.

    python -m tests.bench.speed_table           # tutorials/numbers/speed.txt, in 10 minutes
    python -m tests.bench.speed_table hybrids   # tutorials/numbers/speed_hybrids.txt, in 3 minutes
    python -m tests.bench.speed_table step      # tutorials/numbers/speed_step.txt, in seconds
    python -m tests.bench.speed_table draws     # tutorials/numbers/speed_draws.txt, in a minute

The first runs `tests/bench/test_speed.py` in processes of their own, on two threads: as it is,
without packed weights, without AVX-512, and on the tiny pair's own replies. The others
run `tests/bench/test_hybrids.py`, a process for each family, one test of the first file, and
`tests/bench/test_reinforcement.py`, on one thread.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

from tests.helpers.hybrids import HYBRIDS

ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "tutorials" / "numbers"
OPTIONS = "-s -n 0 --timeout 0"
BENCH = f"pytest tests/bench/test_speed.py {OPTIONS} -k explanations --batches 32,128 --size"
TABLES: dict[str, tuple[tuple[str, dict[str, str]], ...]] = {
    "speed": (
        (f"{BENCH} 12x512", {}),
        (f"{BENCH} 12x512 --unpacked", {}),
        (f"{BENCH} 12x512", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
        (f"{BENCH} pair", {}),
    ),
    "hybrids": tuple(
        (f"pytest tests/bench/test_hybrids.py {OPTIONS} -k {family}", {}) for family in HYBRIDS
    ),
    "step": ((f"pytest tests/bench/test_speed.py {OPTIONS} -k before_any_arithmetic", {}),),
    "draws": ((f"pytest tests/bench/test_reinforcement.py {OPTIONS}", {"OMP_NUM_THREADS": "1"}),),
}
FILES = {name: f"speed_{name}.txt" for name in TABLES} | {"speed": "speed.txt"}
HEADS = ("batch ", "family  ", "explanations a second")
FIGURES = re.compile(r"^a step |\d tokens/s|\d to \d+$")
"""A line of figures ends with the lengths of the replies, but for those of steps and draws."""


def processor() -> str:
    """Return the processor's name, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def measure(command: str, settings: dict[str, str]) -> str:
    """Return one run as it is shown: its command, and the lines that it prints.

    Raises:
        SystemExit: The benchmark failed for another reason than a figure below its aim.
    """
    environment = {"OMP_NUM_THREADS": "2", **os.environ, **settings}
    ran = subprocess.run(
        command.split(), cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    # pytest's own dots precede some lines.
    listed = [line.lstrip(".F") for line in ran.stdout.splitlines()]
    figures = [line for line in listed if FIGURES.search(line)]
    if not figures:
        sys.exit(f"{command}\n{ran.stdout}\n{ran.stderr}")
    lines = [line for line in listed if line.startswith(HEADS) or line in figures]
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    return "\n".join([f"$ {given} {command}".replace("$  ", "$ "), *lines])


def main(names: list[str]) -> None:
    """Make a table, the speed table unless named."""
    where = f"{date.today()}, {processor()}, torch {version('torch')}, {platform.system()}"
    for name in names or ["speed"]:
        if name not in TABLES:
            sys.exit(f"{name}: expected one of {', '.join(TABLES)}")
        parts = [where, *(measure(*run) for run in TABLES[name])]
        text = "\n\n".join(parts) + "\n"
        (NUMBERS / FILES[name]).write_text(text, "utf-8")
        sys.stdout.write(text)


if __name__ == "__main__":
    main(sys.argv[1:])
