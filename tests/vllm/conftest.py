"""Verbalizers on vLLM's CPU build, in the environment that `install.py` makes; elsewhere, skipped.

Most of an engine's start is the import of vLLM in each of its processes. So engines run in this
process, where that is possible, and each is shared by all the tests that can use it.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nnsight_nla import NLA, tiny

from .install import VLLM

HERE = Path(__file__).parent
AV = tiny.paths()["av"]
# Without it, vLLM pins its worker to one core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
# Engine and worker in one process, with the executor "uni": two imports of vLLM less.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
# vLLM compiles the lookup in a vocabulary that is shared among ranks, also where all else runs
# eagerly. With AVX2 and without AVX-512 that code gives indices outside of the vocabulary.
os.environ.setdefault("TORCH_COMPILE_DISABLE", "1")

OPTIONS = {
    "max_model_len": 512,
    # On a CPU: a multiple of 32, and a cache of its own size instead of a share of all memory.
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 28,
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
}
"""What every engine here is started with."""
SENTENCES = (
    "What a lovely day! People in Paris speak",
    "The cow lives in the",
    "I am sad. People in Rome speak",
    "Nobody came. The bee lives in the",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, and say how not to, where vLLM is absent; its own warnings are no errors."""
    absent = find_spec("vllm") is None
    reason = (
        f"vLLM is not in this environment: run `{VLLM.command}`, then "
        f"`{VLLM.python} -m pytest tests/vllm`"
    )
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))
            if absent:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def vectors(pair) -> torch.Tensor:
    """256 vectors, no two alike: residuals of sentences, and others between them."""
    model, nla = pair
    found = []
    for sentence in SENTENCES:
        with model.trace(sentence):
            residuals = nla.layer(model).output[0, 1:].detach().save()
        found.append(residuals.float().cpu())
    real = torch.cat(found)
    draw = torch.Generator().manual_seed(0)
    mixed = torch.softmax(3 * torch.randn(256 - len(real), len(real), generator=draw), dim=-1)
    return torch.cat([real, mixed @ real])


def random_adapter(folder: Path, seed: int = 0) -> Path:
    """Save a LoRA adapter on the tiny verbalizer, with random matrices that change every text."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(AV, dtype=torch.float32)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = get_peft_model(base, config)
    for name, value in model.named_parameters():
        if "lora_" in name:
            value.data.normal_(std=0.15)
    model.save_pretrained(folder)
    (folder / "nla_meta.yaml").write_text((AV / "nla_meta.yaml").read_text("utf-8"), "utf-8")
    return folder


@pytest.fixture(scope="session")
def on_vllm() -> Iterator[Callable[..., NLA]]:
    """Makes NLAs on vLLM, in float32 with `OPTIONS`; stops their engines at the end."""
    made: list[NLA] = []

    def make(av=None, *, vllm=None, **options) -> NLA:
        options = {"dtype": "float32", **options}
        av = AV if av is None else av
        made.append(NLA(av, engine="vllm", vllm={**OPTIONS, **(vllm or {})}, **options))
        return made[-1]

    yield make
    for each in made:
        each.unload()
