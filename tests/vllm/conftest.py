"""Verbalizers on vLLM's CPU build, in the environment that `install.py` makes; elsewhere, skipped.

An engine takes 20 to 60 seconds to start, so each one is shared by all the tests that can use it.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from nnsight_nla import NLA, tiny

from . import install

HERE = Path(__file__).parent
# Without it, vLLM pins its worker to one core.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")

OPTIONS = {
    "max_model_len": 512,
    # On a CPU: a multiple of 32, and a cache of its own size instead of a share of all memory.
    "block_size": 32,
    "kv_cache_memory_bytes": 1 << 28,
    "enforce_eager": True,
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
        f"vLLM is not in this environment: run `{install.COMMAND}`, then "
        f"`{install.python()} -m pytest tests/vllm`"
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


@pytest.fixture(scope="session")
def on_vllm() -> Iterator[Callable[..., NLA]]:
    """Makes NLAs on vLLM, in float32 with `OPTIONS`; stops their engines at the end."""
    made: list[NLA] = []

    def make(av=None, *, vllm=None, **options) -> NLA:
        options = {"dtype": "float32", **options}
        av = tiny.paths()["av"] if av is None else av
        made.append(NLA(av, engine="vllm", vllm={**OPTIONS, **(vllm or {})}, **options))
        return made[-1]

    yield make
    for each in made:
        each.unload()
