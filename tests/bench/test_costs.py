"""What verbalizing costs beside the text itself: in the trace, in memory, with many vectors."""

import json
import statistics
import subprocess
import sys
import time

import torch

from nnsight_nla import Sampling, tiny

PROMPT = "What a lovely day! People in Paris speak"
ROUNDS = 40
SCRIPT = r"""
import json, re, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch
from nnsight_nla import Sampling, tiny

count = int(sys.argv[1])
_, nla = tiny.load()
# Room for the larger run's own vectors and handles in both: what is measured is the engine's.
vectors = torch.randn(10_000, 128, generator=torch.Generator().manual_seed(0))[:count]
nla.batch_size = 64
nla.resolve(nla.explain(vectors[:64], sampling=Sampling(max_new_tokens=3)))
thought = nla.explain(vectors, sampling=Sampling(max_new_tokens=3))
nla.resolve(thought)
assert len(thought.raw) == count
status = Path("/proc/self/status").read_text()
print(json.dumps(int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024))
"""


def test_a_trace_with_explain_costs_what_one_with_save_costs(capsys):
    model, nla = tiny.load()
    layer = nla.layer(model)

    def saving():
        with model.trace(PROMPT):
            layer.output[0, -1].save()

    def explaining():
        with model.trace(PROMPT):
            nla.explain(layer.output[0, -1])

    def cost(run):
        start = time.process_time()
        run()
        return time.process_time() - start

    for run in (saving, explaining):
        run()
    pairs = [(cost(saving), cost(explaining)) for _ in range(ROUNDS)]
    before, after = (statistics.median(each) for each in zip(*pairs, strict=True))
    with capsys.disabled():
        print(f"\na trace with .save() {before * 1e3:.2f} ms, with explain() {after * 1e3:.2f} ms")
    assert after <= 1.05 * before


def test_an_explanation_of_many_costs_no_more_than_one_of_few(capsys):
    _, nla = tiny.load()
    vectors = torch.randn(1024 + 64, 128, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(max_new_tokens=20)

    def cost(rows):
        thought = nla.explain(rows, sampling=sampling)
        start = time.process_time()
        nla.resolve(thought)
        return (time.process_time() - start) / len(rows)

    cost(vectors[:64])
    few = statistics.median(cost(vectors[:64]) for _ in range(5))
    many = cost(vectors[64:])
    with capsys.disabled():
        print(f"\nan explanation: {few * 1e3:.1f} ms of 64, {many * 1e3:.1f} ms of 1,024")
    assert many <= few


def test_memory_does_not_grow_with_the_number_of_vectors(capsys):
    peaks = {}
    for count in (500, 10_000):
        ran = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(count)], capture_output=True, text=True, check=True
        )
        peaks[count] = json.loads(ran.stdout.splitlines()[-1])
    with capsys.disabled():
        print(f"\npeak memory in MiB, by vectors: {peaks}")
    assert peaks[10_000] <= 1.1 * peaks[500]
