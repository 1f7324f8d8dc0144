"""Notice that vLLM's process has ended, and tell who waits for it.

Ctrl-C reaches all processes of a terminal and of a notebook, vLLM's too, and the system kills a
process that takes too much memory. vLLM (0.32) then closes its connections, and whoever waits for
an output waits for ever. Engines in this process, and those on Ray, have nothing to watch.
"""

from __future__ import annotations

from concurrent.futures import InvalidStateError
from contextlib import suppress
from multiprocessing.connection import wait
from threading import Thread
from typing import Any


def watch(core: Any) -> None:
    """Make every wait for an engine's processes end, with vLLM's error, when one of them ends.

    Args:
        core: vLLM's client of the engine. The thread that watches does not keep it alive.
    """
    processes = _processes(core)
    if processes:
        parts = core.resources, core.outputs_queue, core.utility_results
        Thread(
            target=_tell, args=(processes, *parts), name="nnsight-nla-liveness", daemon=True
        ).start()


def ended(core: Any, seconds: float = 0.0) -> bool:
    """Return whether one of an engine's processes has ended, or does so within some seconds."""
    processes = _processes(core)
    return bool(processes) and bool(wait(processes, seconds))


def _processes(core: Any) -> list[int]:
    """Return what is ready when a process has ended, for each of them."""
    manager = getattr(getattr(core, "resources", None), "engine_manager", None)
    return [each.sentinel for each in getattr(manager, "processes", ())]


def _tell(processes: list[int], resources: Any, outputs: Any, calls: dict[int, Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError  # pyright: ignore

    with suppress(OSError):  # It was closed, and its processes with it.
        wait(processes)
    resources.engine_dead = True  # From here on, vLLM refuses to send anything.
    outputs.put(EngineDeadError())
    for call in list(calls.values()):
        with suppress(InvalidStateError):
            call.set_exception(EngineDeadError())
