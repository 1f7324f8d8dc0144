"""Measure the speed table of the site; best on a machine that does nothing else (10 minutes).

    python -m tests.bench.speed_table           # writes tutorials/numbers/speed.txt

Runs `tests/bench/test_speed.py` in processes of their own, on two threads: as it is, without packed
weights, without AVX-512, and on the tiny pair's own replies.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tutorials" / "numbers" / "speed.txt"
BENCH = "pytest tests/bench/test_speed.py -s -n 0 --timeout 0 -k explanations --batches 32,128"
RUNS = (
    ("12x512", {}),
    ("12x512 --unpacked", {}),
    ("12x512", {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}),
    ("pair", {}),
)
SHOWN = ("batch ", "explanations a second")


def processor() -> str:
    """Return the processor's name, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def measure(size: str, settings: dict[str, str]) -> str:
    """Return one run as it is shown: its command, and the lines that it prints.

    Raises:
        SystemExit: The benchmark failed for another reason than a figure below its aim.
    """
    command = f"{BENCH} --size {size}"
    environment = {"OMP_NUM_THREADS": "2", **os.environ, **settings}
    ran = subprocess.run(
        command.split(), cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    lines = [
        line
        for line in ran.stdout.splitlines()
        if line.startswith(SHOWN) or (line.strip()[:1].isdigit() and " to " in line)
    ]
    if not any(line.strip()[:1].isdigit() for line in lines):
        sys.exit(f"{command}\n{ran.stdout}\n{ran.stderr}")
    given = " ".join(f"{name}={value}" for name, value in settings.items())
    return "\n".join([f"$ {given} {command}".replace("$  ", "$ "), *lines])


def main() -> None:
    """Run all, and write the table."""
    where = f"{date.today()}, {processor()}, torch {version('torch')}, {platform.system()}"
    parts = [where, *(measure(*run) for run in RUNS)]
    TABLE.write_text("\n\n".join(parts) + "\n", "utf-8")
    sys.stdout.write(TABLE.read_text("utf-8"))


if __name__ == "__main__":
    main()
