"""A process of vLLM that ends, with something in the place of vLLM's client."""

import queue
import sys
from concurrent.futures import Future
from multiprocessing import Pipe
from types import ModuleType, SimpleNamespace

import pytest

from nnsight_nla.verbalize.vllm import liveness


class EngineDeadError(Exception):
    """vLLM's error."""


@pytest.fixture(autouse=True)
def vllm(monkeypatch):
    exceptions = ModuleType("vllm.v1.engine.exceptions")
    monkeypatch.setattr(exceptions, "EngineDeadError", EngineDeadError, raising=False)
    for name in ("vllm", "vllm.v1", "vllm.v1.engine"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, exceptions.__name__, exceptions)


def client():
    """Return a client of two processes, and what ends the second."""
    ends = [Pipe() for _ in range(2)]
    processes = [SimpleNamespace(sentinel=read) for read, _ in ends]
    resources = SimpleNamespace(
        engine_manager=SimpleNamespace(processes=processes), engine_dead=False
    )
    core = SimpleNamespace(
        resources=resources, outputs_queue=queue.Queue(), utility_results={1: Future()}
    )
    core.first = ends[0][1]  # Open for as long as the process runs.
    return core, ends[1][1].close


def test_whoever_waits_is_told_that_a_process_has_ended():
    core, end = client()
    call = core.utility_results[1]
    liveness.watch(core)
    assert not liveness.ended(core)
    end()
    assert isinstance(core.outputs_queue.get(timeout=20), EngineDeadError)
    with pytest.raises(EngineDeadError):
        call.result(timeout=20)
    assert core.resources.engine_dead
    assert liveness.ended(core)


def test_an_answer_that_came_before_the_end_stays():
    core, end = client()
    core.utility_results[1].set_result("said")
    liveness.watch(core)
    end()
    core.outputs_queue.get(timeout=20)
    assert core.utility_results[1].result() == "said"


def test_an_engine_in_this_process_has_nothing_to_watch():
    core = SimpleNamespace()
    liveness.watch(core)
    assert not liveness.ended(core, 0.1)
