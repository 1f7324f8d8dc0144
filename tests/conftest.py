"""Fixtures that every test may use: the trained tiny pair, and random-weight models."""

# beartype must be imported before nnsight, which mounts `.save` on every object.
import os
import sys

import beartype  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import gc
import warnings

import hypothesis
import pytest
import torch

from nnsight_nla import NLA, tiny
from tests.helpers.shapes import check_shapes

# Not for remote runs: they ship functions as source, and a decorated one has another's.
if not any("ndif" in argument or "bench" in argument for argument in sys.argv):
    check_shapes()

# A first example may load a model, and machines are shared: time limits are pytest-timeout's.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

if "PYTEST_XDIST_WORKER" in os.environ:
    # A process per core: threads of their own would only get in each other's way.
    torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes ``-n auto`` means: one where a server, a browser or a clock is shared."""
    alone = ("ndif", "bench", "browser", "soak", "tests/vllm")
    if any(name in argument for argument in config.args for name in alone):
        return 0
    return min(os.cpu_count() or 1, 4)


def pytest_configure(config: pytest.Config) -> None:
    """Host libraries warn about themselves; only ours and the user's are errors."""
    for line in (
        # numpy and torch reload each other's C extensions under pytest's import mode.
        "ignore:.*NumPy module was reloaded.*:UserWarning",
        # torch's own deprecations, raised from transformers and accelerate.
        "ignore::DeprecationWarning:torch.*",
        "ignore::DeprecationWarning:transformers.*",
        "ignore::FutureWarning:transformers.*",
    ):
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture(scope="session")
def pair():
    """The trained target and its NLA, loaded once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = tiny.load()
    # What is there now stays to the end, and `nla` collects before each test: not all of it again.
    gc.collect()
    gc.freeze()
    return loaded


@pytest.fixture
def model(pair):
    """The trained tiny target; nothing of a test may stay on it."""
    model = pair[0]
    yield model
    assert not model.interleaver.mediators
    assert not model.interleaver.interleaving


@pytest.fixture
def nla(pair) -> NLA:
    """The trained tiny NLA with nothing pending."""
    gc.collect()
    nla = pair[1]
    nla.resolve()
    return nla


@pytest.fixture
def residuals(model, nla) -> torch.Tensor:
    """``[seq, d_model]``: layer K of a sentence that the tiny world knows."""
    with model.trace("What a lovely day! People in Paris speak"):
        found = nla.layer(model).output[0].detach().save()
    return found
