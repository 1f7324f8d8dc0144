"""What SmolLM2's explanations cost: a second, a gibibyte, and from `pip install` to the first text.

    OMP_NUM_THREADS=1 pytest tests/bench/test_smollm2_speed.py -s
    OMP_NUM_THREADS=2 pytest tests/bench/test_smollm2_speed.py -s --batches 1,32,128

The trained verbalizer explains vectors of sentences, so replies end by themselves. Compared within
one run, in float32 and bfloat16, each on the same vectors:

* **adapters**: `NLA.on`, adapters on the target's weights;
* **merged**: a verbalizer of its own, with the adapters merged into its weights;
* **generate**: the merged model, a hook that writes, transformers' ``generate``, fixed batches;
* **floor**: the bare forwards of the merged model, as in ``test_speed.py``.
"""

import gc
import operator
import os
import statistics
import subprocess
import sys
import time

import pytest
import torch
from nnsight import TransformersModel

from nnsight_nla import NLA, Checkpoint, Sampling, smollm2
from nnsight_nla.smollm2 import target
from tests.bench.test_speed import floor, peer

ROUNDS = 3
TEXT = (
    "Bees live in large colonies. In the summer they fly from flower to flower to collect nectar, "
    "which they carry home and turn into honey for the winter. The keeper opens the hive in spring "
    "and looks for the queen, who lays up to two thousand eggs a day. When a colony grows too big "
    "for its home, half of the bees leave with the old queen and look for another place. A swarm "
    "hangs on a branch for a few hours, while scouts fly out and come back to dance. Whoever wants "
    "to catch it needs a box, a brush and some courage, for it will not wait until the evening."
)
AIMS = {"floor": 0.8, "generate": 1.8, "merged": 1.1}
"""At 32 rows: of the floor; times generate in bfloat16; the adapters' time over the merged's."""

pytestmark = pytest.mark.skipif(
    target.wheel_file() is None, reason=f"needs SmolLM2: {target.INSTALL}"
)


def merged(dtype):
    """The verbalizer with its adapters merged, as an NLA and as a plain model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, av = target.converted(), smollm2.paths()["av"]
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    module = PeftModel.from_pretrained(plain, av).merge_and_unload().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformersModel(module, tokenizer=tokenizer, task="text-generation")
    return NLA(model, checkpoint=Checkpoint.load(av)), module


def vectors_of(model, nla, count):
    """Residuals of a text, as many as asked for."""
    with torch.no_grad(), model.trace(TEXT):
        found = nla.layer(model).output[0].detach().float().save()
    rows = found[8:]
    return rows.repeat(-(-count // len(rows)), 1)[:count].clone()


def seconds(run):
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_explanations_a_second(dtype, request, capsys):
    model, on_target = smollm2.load(dtype=dtype)
    own, module = merged(getattr(torch, dtype))
    for nla in (on_target, own):
        nla.sampling = Sampling(max_new_tokens=80)
    lines = []
    for batch in map(int, request.config.getoption("--batches").split(",")):
        count = max(batch, 2)
        vectors = vectors_of(model, on_target, count)
        taken = {"adapters": [], "merged": [], "generate": [], "floor": []}
        for _ in range(ROUNDS):
            replies = {}
            for name, nla in (("adapters", on_target), ("merged", own)):
                nla.batch_size = batch
                thought = nla.explain(vectors)
                taken[name].append(seconds(lambda n=nla, t=thought: n.resolve(t)) / count)
                replies[name] = thought._capture.replies
            lengths = [replies["merged"][row, 0].new_tokens for row in range(count)]
            taken["floor"].append(seconds(lambda n=lengths, b=batch: floor(own, n, b)) / count)
            taken["generate"].append(
                seconds(lambda v=vectors, b=batch: peer(own, module, v, b)) / count
            )
        best = {name: statistics.median(each) for name, each in taken.items()}

        def ratio(name, over="adapters", taken=taken):
            return statistics.median(map(operator.truediv, taken[name], taken[over]))

        lines.append(
            f"{batch:5d} "
            + " ".join(f"{1 / best[name]:9.2f}" for name in taken)
            + f"   x{ratio('generate'):5.2f} x{ratio('floor'):5.2f} "
            f"x{ratio('adapters', 'merged'):5.2f}   {sum(lengths) / count:.0f}"
        )
    with capsys.disabled():
        print(
            f"\nexplanations a second, {dtype}, {torch.get_num_threads()} threads, medians of "
            f"{ROUNDS}\nbatch  adapters    merged  generate     floor   x gen. x floor "
            "adapters/merged   new tokens\n" + "\n".join(lines)
        )
        print(f"aims at 32 rows: {AIMS}")
    assert best["adapters"] < 2 * best["generate"]


SCRIPT = """
import resource
import psutil, torch
from nnsight_nla import smollm2
model, nla = smollm2.load(dtype={dtype!r})
loaded = psutil.Process().memory_info().rss
vectors = torch.randn(32, 576)
nla.batch_size = 32
nla.explain(vectors).text
print(loaded, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory(dtype, capsys):
    """In a process of its own: loaded, and the peak while 32 vectors are explained."""
    code = SCRIPT.format(dtype=dtype)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded, peak = map(int, ran.stdout.split()[-2:])
    with capsys.disabled():
        print(f"\nmemory, {dtype}: {loaded / 2**20:.0f} MiB loaded, {peak / 2**20:.0f} MiB at most")
    assert peak < 4 * 2**30


def test_from_the_weights_to_the_first_text(tmp_path, capsys):
    """Converting and loading, as after `pip install`, and again with the cache."""
    line = (
        "from nnsight_nla import smollm2; m, n = smollm2.load()\n"
        "import torch; print(n.explain(torch.randn(576)).text)"
    )
    environment = {**os.environ, "NNSIGHT_NLA_CACHE": str(tmp_path)}
    took = [
        seconds(
            lambda: subprocess.run(
                [sys.executable, "-c", line], check=True, capture_output=True, env=environment
            )
        )
        for _ in range(2)
    ]
    with capsys.disabled():
        print(f"\nfirst text after {took[0]:.0f} s; the next time after {took[1]:.0f} s")
    assert took[1] < took[0]
