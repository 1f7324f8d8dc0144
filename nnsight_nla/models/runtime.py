"""Run one model of an NLA: hold its lock, make room for it in memory, load its weights.

An NLA has a `Runtime` for the verbalizer and one for the reconstructor. All code that runs one of
the two models does so inside `Runtime.use`::

    with runtime.use() as model:        # other threads wait, other models make room, weights load
        with model.trace(prompts): ...  # exactly one trace on this model at a time

The lock belongs to the model, so two NLAs that share a live model share it too. nnsight allows one
trace per model at a time; if the user is tracing the same model, that is an error, not a wait.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .. import _compat
from ..core.locks import Lock
from ..errors import NLAError, ReconstructionError, VerbalizationError
from . import hosts
from .memory import Memory, free_for, load_weights, size
from .reconstructor_files import Role
from .weights import watch

if TYPE_CHECKING:
    from nnsight import TransformersModel

_LOCKS: weakref.WeakKeyDictionary[Any, Lock] = weakref.WeakKeyDictionary()
_IN_USE: dict[Role, tuple[type[NLAError], str]] = {
    "verbalizer": (
        VerbalizationError,
        "Read the text after the `with` block (the vector is kept until then), or use a verbalizer "
        "that is a separate model: NLA('path or id').",
    ),
    "reconstructor": (ReconstructionError, "Reconstruct after the `with` block."),
}


class Runtime:
    """One of the two models of an NLA; all runs of it go through `use`."""

    def __init__(
        self,
        model: TransformersModel,
        role: Role,
        *,
        memory: Memory | None = None,
        remote: bool = False,
        loaded_here: bool = False,
        unused: Callable[[str], bool] | None = None,
    ) -> None:
        """Register the model with `memory`; no weights are loaded.

        Args:
            model: The nnsight model.
            role: Its name in errors.
            memory: Decides which models are in memory together; a new `Memory` by default.
            remote: Whether it runs on the configured NDIF host.
            loaded_here: Whether it came from a path or an id and so can be loaded again.
            unused: Whether its checkpoint may lack a weight of that name; see `weights.load`.
        """
        watch()
        self.model, self.remote, self._unused = model, remote, unused
        self.role: Role = role
        self._process = os.getpid()
        self.memory = memory or Memory()
        self.memory.add_model(role, model, loaded_here=loaded_here)
        self.lock = _LOCKS.setdefault(model, Lock())

    @property
    def name(self) -> str:
        """The model's name or path; of an adapter, the adapter's."""
        return hosts.adapter_of(self.model) or hosts.describe(self.model)

    @property
    def base(self) -> str | None:
        """The name or path of the model that the adapter runs on; ``None`` without an adapter."""
        return None if hosts.adapter_of(self.model) is None else hosts.describe(self.model)

    @property
    def loaded(self) -> bool:
        """Whether the weights are in this process."""
        return bool(self.model.dispatched)

    @contextmanager
    def use(self) -> Iterator[TransformersModel]:
        """Wait for other threads, make room in memory, load the weights, and yield the model.

        A remote model has no weights here, so nothing is loaded and nothing makes room.

        Yields:
            The model, in evaluation mode.

        Raises:
            VerbalizationError: You are tracing the verbalizer.
            ReconstructionError: You are tracing the reconstructor.
            CheckpointError: The weights do not fit in memory, or cannot be loaded.
        """
        with self.lock.held():
            self._check_idle()
            if self.remote:
                yield self.model
                return
            with self.memory.running(self.model), _own_defaults():
                load_weights(self.model, self.role, self._unused)
                yield self.model

    def free_bytes(self) -> int:
        """Return the free bytes on the model's device, once the weights are loaded."""
        return free_for(self.model) - size(self.model)

    def _check_idle(self) -> None:
        if _compat.interleaving(self.model):
            error, advice = _IN_USE[self.role]
            if os.getpid() != self._process:
                raise error(
                    f"This process was forked while a trace was running on the {self.role}, which "
                    "is of no use here. Fork when nothing is being verbalized, or start processes "
                    "with multiprocessing.get_context('spawn')."
                )
            raise error(
                f"A trace is running on the {self.role} itself, and nnsight runs one trace per "
                f"model at a time. {advice}"
            )


@contextmanager
def _own_defaults() -> Iterator[None]:
    """Leave the caller's ``torch.autocast`` and default device, which other libraries obey."""
    # PyTorch 2.6 raises in current_accelerator() where there is none.
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    kinds = {"cpu", *([accelerator.type] if accelerator is not None else [])}
    with ExitStack() as stack:
        for kind in sorted(kinds):
            stack.enter_context(torch.autocast(kind, enabled=False))
        if _compat.default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
