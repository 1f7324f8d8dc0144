"""Explanations a second and CPU seconds: vLLM's CPU build, the fast engine, and ``generate``.

    FOLDER/bin/python -m tests.bench.vllm_speed          # prints, and writes the figures
    FOLDER/bin/python -m tests.bench.vllm_speed --size 12x512 --rounds 1

FOLDER is what `python tests/vllm/install.py` prints. The three run one after the other in each
round, on one thread each and on the same 256 vectors; the best round counts. CPU seconds are those
of all processes; on a busy machine they say more than texts a second. Weights are random, so that
greedy replies wander, and some token ids end a reply: the vectors are those whose replies have 40
to 150 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import beartype  # noqa: F401  (Before nnsight.)
import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from tests.bench.speed_table import processor

FIGURES = Path(__file__).parents[2] / "tutorials" / "numbers" / "vllm.txt"
VECTORS, SHORTEST, LONGEST = 256, 40, 150
ENDS = 16
"""How many of the vocabulary's ids end a reply."""
SHAPES = {
    "6x128": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "12x512": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
               "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
}  # fmt: skip


def save(folder: Path, size: str) -> Checkpoint:
    """Save a random model of a size, with the tiny pair's tokenizer; return its checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(tiny.paths()["av"])
    config = Qwen3Config(
        vocab_size=1496, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=2, pad_token_id=0, **SHAPES[size],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.uniform_(-0.25, 0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    step = config.vocab_size // ENDS
    ends = [2, *range(step, config.vocab_size, step)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}), "utf-8")
    described = Checkpoint.load(tiny.paths()["av"])
    return replace(
        described, d_model=config.hidden_size, template=AV_TEMPLATE,
        injection=Injection("add", "block", 1), calibration=None, baseline=None,
    )  # fmt: skip


def uneven(nla: NLA, width: int) -> torch.Tensor:
    """Return vectors whose replies have from `SHORTEST` to `LONGEST` tokens."""
    found: list[torch.Tensor] = []
    for seed in range(100):
        drawn = torch.randn(256, width, generator=torch.Generator().manual_seed(seed))
        handle = nla.explain(drawn)
        nla.resolve(handle)
        replies = [handle.capture.replies[row, 0] for row in range(len(drawn))]
        found += [
            vector
            for vector, reply in zip(drawn, replies, strict=True)
            if SHORTEST <= reply.new_tokens < LONGEST
        ]
        if len(found) >= VECTORS:
            return torch.stack(found[:VECTORS])
    sys.exit(f"{len(found)} of the replies have {SHORTEST} to {LONGEST} tokens: too few")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that `work` took, and the CPU seconds of all our processes."""
    before, start = _cpu(), time.perf_counter()
    work()
    return time.perf_counter() - start, _cpu() - before


def _cpu() -> float:
    own = psutil.Process()
    spent = [each.cpu_times() for each in (own, *own.children(recursive=True))]
    return sum(each.user + each.system for each in spent)


def measure(size: str, rounds: int) -> list[str]:
    """Return the lines for one size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = save(folder, size)
        options = {
            "checkpoint": checkpoint, "dtype": "float32",
            "sampling": Sampling(max_new_tokens=LONGEST),
        }  # fmt: skip
        settings = {
            "max_model_len": 512, "block_size": 32, "kv_cache_memory_bytes": 1 << 30,
            "enforce_eager": True,
        }  # fmt: skip
        ours = {
            "fast": NLA(folder, **options, batch_size=128),
            "generate": NLA(folder, **options, engine="generate", batch_size=128),
            "vllm": NLA(folder, **options, engine="vllm", vllm=settings),
        }
        vectors = uneven(ours["fast"], checkpoint.d_model)
        started, _ = timed(lambda: ours["vllm"].explain(vectors[0]).raw)
        asked = _watched(ours["vllm"])
        texts: dict[str, list[str]] = {}
        best: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):
            for engine, nla in ours.items():
                asked.clear()
                if engine == "vllm":  # What the last round left in the prefix cache.
                    nla._engine._backend._llm.reset_prefix_cache()
                handle = nla.explain(vectors)
                took = timed(lambda: nla.resolve(handle))  # noqa: B023
                texts[engine] = handle.raw
                best[engine] = min(best.get(engine, took), took)
        receipts = sum(asked)
        replies = [handle.capture.replies[row, 0].new_tokens for row in range(VECTORS)]
        ours["vllm"].unload()
    equal = {
        name: sum(a == b for a, b in zip(said, texts["fast"], strict=True))
        for name, said in texts.items()
    }
    lines = [
        f"{size}, float32, {VECTORS} vectors, replies of {min(replies)} to {max(replies)} tokens",
        f"{'engine':<10}{'texts/s':>9}{'CPU s':>9}{'equal texts':>13}",
    ]
    lines += [
        f"{name:<10}{VECTORS / seconds:>9.1f}{cpu:>9.1f}{equal[name]:>9} of {VECTORS}"
        for name, (seconds, cpu) in best.items()
    ]
    share = receipts / best["vllm"][0]
    lines.append(f"vllm: {started:.0f} s to start and say the first text; receipts {share:.1%}")
    lines.append(f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores, these included")
    return lines


def _watched(nla: NLA) -> list[float]:
    """Return a list that gets the seconds of each request for receipts."""
    backend, spent = nla._engine._backend, list[float]()
    real = backend.receipts

    def receipts(keys):
        start = time.perf_counter()
        try:
            return real(keys)
        finally:
            spent.append(time.perf_counter() - start)

    backend.receipts = receipts
    return spent


def main() -> None:
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=[*SHAPES], action="append")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    where = (
        f"{date.today()}, {processor()}, one thread; vllm-cpu {version('vllm-cpu')}, "
        f"torch {version('torch')}, transformers {version('transformers')}"
    )
    command = f"$ python -m tests.bench.vllm_speed {' '.join(sys.argv[1:])}".rstrip()
    parts = [f"{where}\n{command}"]
    parts += ["\n".join(measure(size, given.rounds)) for size in given.size or SHAPES]
    FIGURES.write_text("\n\n".join(parts) + "\n", "utf-8")
    sys.stdout.write(FIGURES.read_text("utf-8"))


if __name__ == "__main__":
    main()
