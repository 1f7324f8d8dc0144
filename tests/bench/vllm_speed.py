"""Explanations a second and CPU seconds: vLLM's CPU build, the fast engine, and ``generate``.

    FOLDER/bin/python -m tests.bench.vllm_speed          # prints, and writes the figures
    FOLDER/bin/python -m tests.bench.vllm_speed --size 12x512 --rounds 1

FOLDER is what `python -m tests.vllm.install` prints. The three run one after the other in each
round, on one thread each, all processes on one core, and on the same 256 vectors; the best round
counts. CPU seconds are those of all processes; on a busy machine they say more than texts a second.
Then `bulk.run` explains the vectors in chunks, one or two at a time, and what vLLM has under way is
counted at each of its steps.

No engine is told how long a reply is: the weights themselves count down. The embedding of a token
is a code in the second half of the residual, and the head reads from it the token before; block 2
copies the first half of the marker's residual into the second half of the last token's. So a vector
with the code of the token ``n`` in its first half is answered with ``n`` tokens. All other matrices
are random and small: they cost what they always cost, and change nothing.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import beartype  # noqa: F401  (Before nnsight.)
import psutil
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Qwen3Config

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, bulk, tiny
from nnsight_nla.checkpoint.checkpoint import AV_TEMPLATE
from tests.bench.speed_table import processor

FIGURES = Path(__file__).parents[2] / "tutorials" / "numbers" / "vllm.txt"
VECTORS, SHORTEST, LONGEST = 256, 40, 150
CHUNK = 64
VOCABULARY, END = 1496, 2
SHAPES = {
    "6x128": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6,
              "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32},
    "12x512": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12,
               "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 64},
}  # fmt: skip
SETTINGS = {
    "max_model_len": 512, "block_size": 32, "kv_cache_memory_bytes": 1 << 30,
    "enforce_eager": True,
}  # fmt: skip


def codes(size: str) -> torch.Tensor:
    """Return a code of signs for each step of the countdown, ``[LONGEST + 1, d_model / 2]``."""
    width = SHAPES[size]["hidden_size"] // 2
    drawn = torch.randn(LONGEST + 1, width, generator=torch.Generator("cpu").manual_seed(0))
    return drawn.sign()


def save(folder: Path, size: str) -> Checkpoint:
    """Save a model that counts down, with the tiny pair's tokenizer; return its checkpoint."""
    _, pair = tiny.load()
    config = Qwen3Config(
        vocab_size=VOCABULARY, max_position_embeddings=512, tie_word_embeddings=False,
        eos_token_id=END, pad_token_id=0, **SHAPES[size],
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # The token of step n; no token of the prompt is one of them.
    free = (each for each in range(100, VOCABULARY) if each not in set(pair.prompt.ids))
    steps = [END, *islice(free, LONGEST)]
    with torch.no_grad():
        count_down(model, steps, codes(size))
    model.save_pretrained(folder)
    pair.av.tokenizer.save_pretrained(folder)
    return replace(
        pair.checkpoint, d_model=config.hidden_size, template=AV_TEMPLATE,
        injection=Injection("add", "block", 1), calibration=None, baseline=None,
    )  # fmt: skip


def count_down(model: Any, steps: list[int], code: torch.Tensor) -> None:
    """Set the weights so that the token of step n is followed by that of step n - 1.

    Args:
        model: A Qwen3 with grouped-query attention whose values are half as wide as the residual.
        steps: The token of each step; the first of them ends the reply.
        code: The code of each step.
    """
    half = code.shape[1]
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            adds = name.endswith(("o_proj.weight", "down_proj.weight"))
            weight.uniform_(*((-1e-5, 1e-5) if adds else (-0.1, 0.1)))
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    embeddings[:, :half] = 0.0
    embeddings[steps[1:], half:] = 10 * code[:-1]  # The token of step n says n - 1.
    head.zero_()
    head[steps, half:] = code
    attention = model.model.layers[2].self_attn
    attention.q_proj.weight.zero_()  # All tokens alike; only the marker has a first half.
    attention.v_proj.weight.copy_(torch.eye(half, 2 * half))
    heads, width = attention.config.num_key_value_heads, attention.head_dim
    # The first query head of each group copies its values.
    copied = attention.o_proj.weight.view(2 * half, heads, -1, width)[half:, :, 0]
    copied.copy_(100 * torch.eye(half).view(half, heads, width))


def uneven(size: str) -> torch.Tensor:
    """Return vectors with replies of `SHORTEST` to `LONGEST` tokens, all lengths alike."""
    draw = torch.Generator("cpu").manual_seed(1)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (VECTORS,), generator=draw)
    code = codes(size)[lengths]
    return torch.cat([code, torch.randn(code.shape, generator=draw)], dim=-1)


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
        options = {
            "checkpoint": save(folder, size), "dtype": "float32",
            "sampling": Sampling(max_new_tokens=LONGEST + 10),
        }  # fmt: skip
        ours = {
            "fast": NLA(folder, **options, batch_size=128),
            "generate": NLA(folder, **options, engine="generate", batch_size=128),
            "vllm": NLA(folder, **options, engine="vllm", vllm=SETTINGS),
        }
        vectors = uneven(size)
        started = {name: timed(lambda: _started(nla))[0] for name, nla in ours.items()}  # noqa: B023
        asked = _watched(ours["vllm"])
        texts: dict[str, list[str]] = {}
        best: dict[str, tuple[float, float, float]] = {}
        for _ in range(rounds):
            for engine, nla in ours.items():
                asked.clear()
                if engine == "vllm":  # What the last round left in the prefix cache.
                    nla._engine._backend._llm.reset_prefix_cache()
                handle = nla.explain(vectors)
                took = (*timed(lambda: nla.resolve(handle)), sum(asked))  # noqa: B023
                texts[engine] = handle.raw
                best[engine] = min(best.get(engine, took), took)
        replies = [handle.capture.replies[row, 0].new_tokens for row in range(VECTORS)]
        filled = [chunked(ours["vllm"], vectors, folder, each, rounds) for each in (1, 2)]
        ours["vllm"].unload()
    equal = {
        name: sum(a == b for a, b in zip(said, texts["fast"], strict=True))
        for name, said in texts.items()
    }
    lines = [
        f"{size}, float32, {VECTORS} vectors, replies of {min(replies)} to {max(replies)} tokens",
        f"{'engine':<10}{'start s':>9}{'texts/s':>9}{'CPU s':>9}{'equal texts':>13}",
    ]
    lines += [
        f"{name:<10}{started[name]:>9.1f}{VECTORS / seconds:>9.1f}{cpu:>9.1f}"
        f"{equal[name]:>6} of {VECTORS}"
        for name, (seconds, cpu, _) in best.items()
    ]
    seconds, _, receipts = best["vllm"]
    lines.append(f"receipts: {receipts / seconds:.1%} of vLLM's time")
    lines.append(f"bulk.run, chunks of {CHUNK:<3}{'texts/s':>8}{'under way':>13}")
    lines += [
        f"{name:<22}{VECTORS / seconds:>8.1f}{under_way:>13.1f}"
        for name, (seconds, under_way) in zip(("one", "two at a time"), filled, strict=True)
    ]
    lines.append(f"load average {os.getloadavg()[1]:.1f} on {os.cpu_count()} cores, these included")
    return lines


def chunked(
    nla: NLA, vectors: torch.Tensor, folder: Path, together: int, rounds: int
) -> tuple[float, float]:
    """Run a data set in chunks, `together` of which are finished at a time.

    Returns:
        The seconds of the best round, and the mean number of requests under way at a step.
    """
    source, output = folder / "vectors.safetensors", folder / "out.parquet"
    save_file({"v": vectors}, source)
    backend, counted = nla._engine._backend, list[int]()
    real = backend._llm.llm_engine.step

    def step():
        counted.append(len(backend._under_way))
        return real()

    seconds = list[float]()
    with ExitStack() as patched:
        module = importlib.import_module("nnsight_nla.bulk.run")
        patched.enter_context(patch.object(module, "_TOGETHER", together))
        patched.enter_context(patch.object(backend._llm.llm_engine, "step", step))
        for _ in range(rounds):
            backend._llm.reset_prefix_cache()
            output.unlink(missing_ok=True)
            work = lambda: bulk.run(nla, source, output, chunk=CHUNK, progress=False)  # noqa: E731
            seconds.append(timed(work)[0])
    return min(seconds), statistics.mean(counted)


def _started(nla: NLA) -> None:
    with nla._engine.use():
        pass


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
    os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])  # vLLM's processes get it, too.
    where = (
        f"{date.today()}, {processor()}, one core; vllm-cpu {version('vllm-cpu')}, "
        f"torch {version('torch')}, transformers {version('transformers')}"
    )
    command = f"$ python -m tests.bench.vllm_speed {' '.join(sys.argv[1:])}".rstrip()
    parts = [f"{where}\n{command}"]
    parts += ["\n".join(measure(size, given.rounds)) for size in given.size or SHAPES]
    FIGURES.write_text("\n\n".join(parts) + "\n", "utf-8")
    sys.stdout.write(FIGURES.read_text("utf-8"))


if __name__ == "__main__":
    main()
