"""Run a small random model of each architecture on vLLM, and compare it with the default engine.

    FOLDER/bin/python -m tests.vllm.architectures        # prints, and writes the table

FOLDER is what `python -m tests.vllm.install` prints. All engines run one after the other in this
process. `test_architectures.py` does the same for each architecture of the table that runs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # Before vLLM is imported; the tests set them in conftest.py.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import beartype  # noqa: F401  (Before nnsight.)
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from nnsight_nla import NLA, Checkpoint, Injection, Sampling, tiny

TABLE = Path(__file__).parents[2] / "tutorials" / "numbers" / "vllm_architectures.txt"
D_MODEL, DEPTH = 128, 4
INJECTIONS = {
    "block": Injection("add", "block", 1, 9.0),
    "embedding": Injection("replace", "embedding", None, 6.0),
}
SAMPLING = Sampling(max_new_tokens=40)
COUNT = 32
OPTIONS: dict[str, Any] = {
    "max_model_len": 160, "block_size": 32, "kv_cache_memory_bytes": 1 << 26, "max_num_seqs": 16,
    "max_num_batched_tokens": 128, "enforce_eager": True, "distributed_executor_backend": "uni",
}  # fmt: skip
_SHAPE: dict[str, Any] = {
    "vocab_size": 1496, "hidden_size": D_MODEL, "intermediate_size": 192,
    "num_hidden_layers": DEPTH, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 160, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_HEADS = {"head_dim": 32}
_GEMMA = {**_HEADS, "query_pre_attn_scalar": 32, "sliding_window": 64}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3": _HEADS,
    "qwen2": {},
    "llama": _HEADS,
    "mistral": _HEADS,
    "phi3": {},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gpt2": {"n_embd": D_MODEL, "n_layer": DEPTH, "n_head": 4, "n_positions": 160},
}  # fmt: skip
"""Model types of transformers, each with what its configuration needs besides a small shape."""


@dataclass(frozen=True)
class Compared:
    """The texts of one model by both engines."""

    equal: int
    """Texts that are equal."""
    different: int
    """Different texts among those of the default engine."""
    worst: float
    """The least cosine between a vector and what was written, as vLLM measured it."""


def save(folder: Path, kind: str) -> None:
    """Save a random model of an architecture, with the tiny pair's tokenizer."""
    config = AutoConfig.for_model(kind, **{**_SHAPE, **ARCHITECTURES[kind]})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            # Norms of random scale, so that a tied head does not repeat the last token for ever.
            weight.uniform_(*((-0.2, 0.2) if weight.ndim > 1 else (0.0, 3.0)))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.paths()["av"]).save_pretrained(folder)


def compare(folder: Path, site: str) -> Compared:
    """Explain the same vectors by both engines."""
    described = replace(
        Checkpoint.load(tiny.paths()["av"]), d_model=D_MODEL, layer=2, baseline=None,
        calibration=None, injection=INJECTIONS[site],
    )  # fmt: skip
    options = {"checkpoint": described, "dtype": "float32", "sampling": SAMPLING}
    drawn = torch.randn(COUNT, D_MODEL, generator=torch.Generator().manual_seed(0))
    expected = NLA(folder, **options).explain(drawn).raw
    on_vllm = NLA(folder, engine="vllm", vllm=OPTIONS, **options)
    try:
        found = on_vllm.explain(drawn)
        said = found.raw
    finally:
        on_vllm.unload()
    equal = sum(ours == theirs for ours, theirs in zip(said, expected, strict=True))
    return Compared(equal, len(set(expected)), min(found.receipt.injection_cosine))


def line(kind: str) -> str:
    """Return the line of one architecture."""
    cells: list[str] = []
    for site in INJECTIONS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                save(Path(folder), kind)
                found = compare(Path(folder), site)
                cells.append(f"{found.equal} of {COUNT} ({found.different} different)")
            except Exception as error:  # The table says what each one raises.
                sys.stderr.write(f"{kind}: {type(error).__name__}: {error}\n")
                cells.append(f"{type(error).__name__}: {str(error).splitlines()[0][:120]}")
    return f"{kind:<14}" + "".join(f"{cell:<28}" for cell in cells).rstrip()


def main() -> None:
    """Compare, print, and write the table."""
    head = (
        f"Equal texts of {COUNT} random vectors, float32, vllm-cpu {version('vllm-cpu')}, "
        f"transformers {version('transformers')}\n$ python -m tests.vllm.architectures\n\n"
        f"{'':<14}{'added at block 1':<28}{'replaced at the embedding'}"
    )
    lines = [head]
    for kind in sys.argv[1:] or ARCHITECTURES:
        lines.append(line(kind))
        sys.stderr.write(f"{lines[-1]}\n")
        if not sys.argv[1:]:  # Line by line: an architecture takes a minute on a busy machine.
            TABLE.write_text("\n".join(lines) + "\n", "utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
