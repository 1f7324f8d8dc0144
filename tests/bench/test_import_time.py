"""``import nnsight_nla`` adds little to nnsight's own import.

Fresh processes import nnsight, then time what the package adds, from compiled bytecode as an
installed package has it. Python's cyclic collector is off meanwhile: a full collection over the
objects that torch and transformers made takes longer than this package's whole import, and falls to
whoever allocates next. The fastest process counts: other programs can only make one slower, also in
its processor's time. Run with ``pytest tests/bench -s``.
"""

import json
import os
import statistics
import subprocess
import sys

BUDGET = 0.050
"""Seconds of processor time that the package may add."""
PAIRS = 7
SCRIPT = """
import gc, json, time
start = time.perf_counter()
import nnsight
host = time.perf_counter() - start
gc.disable()
start = time.process_time()
import nnsight_nla
print(json.dumps([host, time.process_time() - start]))
"""


def test_importing_the_package_adds_little(tmp_path):
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)

    def run() -> tuple[float, float]:
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        host, added = json.loads(ran.stdout.splitlines()[-1])
        return host, added

    run()  # Compiles.
    pairs = [run() for _ in range(PAIRS)]
    host, added = (min(each) for each in zip(*pairs, strict=True))
    median = statistics.median(added for _, added in pairs)
    sys.stdout.write(
        f"\nimport nnsight {host:.2f} s; nnsight_nla adds {added * 1000:.0f} ms "
        f"(fastest of {PAIRS}, median {median * 1000:.0f} ms)\n"
    )
    assert added < BUDGET
