"""Decide which weights are in memory: those of the target, the verbalizer or the reconstructor.

Vectors are captured first and verbalized later, so the three models do not have to be in memory at
the same time. With ``placement="sequential"``, only the model that runs is::

    with memory.running(av):    # the target is moved away, the reconstructor is unloaded
        ...                     # the verbalizer loads and runs
                                # it is unloaded and the target restored, also after an error

A **target** is any model that was passed to `NLA.layer` (also through `read` and the experiments),
held weakly, or as ``NLA(..., target=model)``. To *make room*, its tensors move from an accelerator
to the CPU, or from the CPU to a temporary file (in ``TMPDIR``, which must be on a disk, not in
memory). They are restored from there, not from the checkpoint: bit for bit, with your changes, on
the same device and in the same dtype. Modules, hooks, envoys, edits and adapters stay in place. A
live model that you passed as the verbalizer or reconstructor makes room in the same way. A model
that was loaded here, by path or id, is *unloaded*, and loaded again from its checkpoint when it
next runs.

Because of the temporary file, "sequential" also saves memory without an accelerator: for two
float32 models of 360 MB, the peak was 390 MB instead of 754 MB, and each switch took about 1 to 1.4
s more CPU time.

Gradients and optimizer states do not move. A model that runs on an NDIF host has nothing to move.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import _compat
from ..core.locks import Lock
from ..errors import CheckpointError, NLAError, VerbalizationError, shown
from . import hosts, weights
from .adapter import AdapterModel, weights_of

Placement = Literal["together", "sequential"]

_SWITCHING = Lock()
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


class Memory:
    """The models of one NLA; makes room for the one that runs."""

    def __init__(self, placement: Placement = "together", target: Any = None) -> None:
        """Register the target, if there is one.

        Raises:
            CheckpointError: `placement` is neither ``"together"`` nor ``"sequential"``.
        """
        if placement not in get_args(Placement):
            listed = " or ".join(f"{each!r}" for each in get_args(Placement))
            raise CheckpointError(f"placement={shown(placement)}: expected {listed}.")
        self.placement = placement
        self._targets: weakref.WeakSet[Any] = weakref.WeakSet()
        self._models: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._loaded_here: weakref.WeakSet[Any] = weakref.WeakSet()
        self._active: Any = None
        self._away: list[Parked] = []
        if target is not None:
            self._targets.add(target)

    def add_target(self, model: Any) -> None:
        """Register a target with a weak reference."""
        self._targets.add(model)

    def add_model(self, name: str, model: Any, *, loaded_here: bool) -> None:
        """Register a verbalizer or a reconstructor.

        Args:
            name: What errors call it.
            model: Its nnsight model.
            loaded_here: Whether it came from a path or an id and so can be loaded again.
        """
        self._models[model] = name
        if loaded_here:
            self._loaded_here.add(model)

    @contextlib.contextmanager
    def running(self, model: Any) -> Iterator[None]:
        """Make room for a model that is about to run, and restore the targets afterwards.

        Raises:
            CheckpointError: Its weights do not fit in memory; nothing was loaded.
            VerbalizationError: A trace is running on a model that would have to make room.
        """
        if self.placement == "together":
            self._check_fit(model)
            yield
            return
        with _SWITCHING.held():
            if self._active is model:
                yield
                return
            self._bring_back()  # Tensors that could not be restored last time.
            try:
                self._check_fit(model)
                self._make_room(model)
                self._active = model
                yield
            finally:
                self._active = None
                if self._away and model in self._loaded_here:
                    unload(model)
                self._bring_back()

    def unload(self) -> None:
        """Drop the weights of every model that was loaded here.

        Raises:
            VerbalizationError: A trace is running on one of them.
        """
        for model in list(self._models):
            if model in self._loaded_here:
                unload(model)

    def _make_room(self, model: Any) -> None:
        base = weights_of(model)
        others = [other for other in self._models if other is not model]
        staying = [other for other in others if other not in self._loaded_here]
        leaving = {
            id(other): other
            for other in [*self._targets, *staying]
            if weights_of(other) is not base and _loaded(other)
        }
        for other in leaving.values():
            _check_idle(other, hosts.describe(other))
            _check_plain(other)
        for other in others:
            if other in self._loaded_here:
                unload(other)
        keep = (
            {_storage(tensor) for tensor in _each(hosts.module_of(base))}
            if _loaded(base)
            else set[int]()
        )
        for other in leaving.values():
            self._away.append(Parked())
            self._away[-1].leave(hosts.module_of(other), keep)
        _free()

    def _bring_back(self) -> None:
        while self._away:
            self._away[-1].back()
            self._away.pop()

    def _check_fit(self, model: Any) -> None:
        """Compare what a model needs with the memory that is free, before loading it."""
        base = weights_of(model)
        device = None if _loaded(model) else _device_of(base)
        if device is None:
            return
        needed, free = size(model), free_bytes(device)
        others = [each for each in self._models if each is not model]
        present = [each for each in {*self._targets, *others} if weights_of(each) is not base]
        owners = {weights_of(each) for each in present}
        room = sum(_held(each, device) for each in owners if _loaded(each))
        if needed <= free + (room if self.placement == "sequential" else 0):
            return
        name = self._models.get(model, "model")
        targets = [each for each in self._targets if each is not base and _loaded(each)]
        theirs = sum(_held(each, device) for each in targets)
        lines = [
            f"The {name} {hosts.describe(model)} needs {_gb(needed)} on {device}, where "
            f"{_gb(free)} are free."
        ]
        if theirs:
            names = ", ".join(hosts.describe(each) for each in targets)
            lines.append(f"The target {names} takes {_gb(theirs)}.")
        if self.placement == "together" and needed <= free + room:
            lines.append("They fit one at a time: NLA(..., placement='sequential').")
        else:
            lines.append(f"One at a time they do not fit either: {_gb(free + room)} would be free.")
        smaller = ", ".join(
            f"dtype={dtype!r} ({_gb(size(model, dtype))})" for dtype in ("int8", "nf4")
        )
        lines.append(
            f"Load it smaller: NLA(..., {smaller}). If it ships as an adapter, share the base: "
            "NLA.on(model, av=...). Or run it on an NDIF host: NLA(..., remote=True)."
        )
        raise CheckpointError(" ".join(lines))


class Parked:
    """The tensors of a module while they are moved out of the way.

    Complete storages move, so tensors that shared memory share it again when they are restored.
    """

    def __init__(self) -> None:
        """Start with no tensors."""
        self._away: list[tuple[Tensor | int, torch.device, list[tuple[Any, ...]]]] = []
        self._file: IO[bytes] | None = None

    def leave(self, module: nn.Module, keep: set[int]) -> None:
        """Move the tensors of `module` to the CPU, or from the CPU to a file.

        Args:
            module: The module; its structure stays, its tensors become empty.
            keep: Addresses of storages that stay because they are in use.
        """
        groups: dict[tuple[torch.device, int], list[Tensor]] = {}
        for tensor in _each(module):
            if tensor.device.type != "meta" and tensor.numel():
                groups.setdefault((tensor.device, _storage(tensor)), []).append(tensor)
        for (device, address), tensors in groups.items():
            if address in keep:
                continue
            content = _bytes(tensors[0].untyped_storage())
            kept = self._write(content) if device.type == "cpu" else content.cpu()
            views = [
                (tensor, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride())
                for tensor in tensors
            ]
            self._away.append((kept, device, views))
            for tensor in tensors:
                nothing = torch.empty(0, dtype=tensor.dtype, device="cpu")
                tensor.data = nothing if isinstance(kept, int) else nothing.to(device)
            del content
        if self._file is not None:
            self._file.flush()

    def back(self) -> None:
        """Restore every tensor. Call it again after an error to continue where it stopped."""
        while self._away:
            kept, device, views = self._away[-1]
            content = self._read(*self._extent(kept)) if isinstance(kept, int) else kept.to(device)
            for tensor, dtype, offset, shape, stride in views:
                empty = torch.empty(0, dtype=dtype, device=device)
                tensor.data = empty.set_(content.untyped_storage(), offset, shape, stride)
            self._away.pop()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, content: Tensor) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="nnsight_nla-")  # noqa: SIM115
            self._ends: list[int] = [0]
        self._file.seek(self._ends[-1])
        self._file.write(memoryview(cast("Any", content.numpy())))
        self._ends.append(self._ends[-1] + content.numel())
        return len(self._ends) - 2

    def _extent(self, number: int) -> tuple[int, int]:
        return self._ends[number], self._ends[number + 1] - self._ends[number]

    def _read(self, start: int, length: int) -> Tensor:
        content = torch.empty(length, dtype=torch.uint8, device="cpu")
        file = cast("Any", self._file)
        file.seek(start)
        got = file.readinto(memoryview(cast("Any", content.numpy())))
        if got != length:
            raise NLAError(
                f"The file in {tempfile.gettempdir()} that held the target's weights is truncated: "
                f"read {got} of {length} bytes. Load the target again."
            )
        return content


def load_weights(
    model: Any, role: str = "model", unused: Callable[[str], bool] | None = None
) -> None:
    """Load the weights of a model, if they are not loaded, and set it to evaluation mode.

    Args:
        model: The nnsight model.
        role: What errors call it.
        unused: Whether a weight of that name does not matter; see `weights.load`.

    Raises:
        CheckpointError: The checkpoint lacks weights or cannot be read, or a library that its dtype
            needs is not installed.
    """
    was_loaded = _loaded(model)
    if isinstance(model, AdapterModel):
        weights.load(model.target)  # PEFT checks the adapter's own weights.
        if was_loaded:
            model.follow()  # Code other than a trace may run it next.
    weights.load(model, role, unused)
    if not was_loaded:
        # An adapter is attached after nnsight's own eval(), with its dropout active.
        hosts.module_of(model).eval()


def unload(model: Any) -> None:
    """Drop the weights of a model that was loaded from a checkpoint; its envoys stay.

    The model returns to its state before it first ran, and loads again when it next runs. PyTorch
    hooks on its modules are lost.

    Raises:
        VerbalizationError: A trace is running on it.
    """
    if not _loaded(model):
        return
    _check_idle(model, hosts.describe(model))
    _compat.drop_weights(model)
    _free()


def size(model: Any, dtype: Any = None) -> int:
    """Return how many bytes loading a model will take; 0 if it is loaded.

    Args:
        model: An nnsight model, read without its weights.
        dtype: Another dtype to compute the size for, as nnsight takes it. A quantized dtype stores
            the blocks' matrices in fewer bits, and the rest in the dtype it computes in.
    """
    if _loaded(model):
        return 0
    chosen = dtype if dtype is not None else model.kwargs.get("dtype")
    form = _compat.quantization(chosen)
    if isinstance(model, AdapterModel):
        base = 0 if _loaded(model.target) else size(model.target)
        return base + sum(tensor.nbytes for tensor in model.added())
    module = hosts.module_of(model)
    head = getattr(module, "get_output_embeddings", lambda: None)()
    packed = {
        id(each.weight)
        for each in module.modules()
        if form is not None and isinstance(each, nn.Linear) and each is not head
    }
    total = 0.0
    for tensor in _each(module):
        width = form.bytes_per_element if form and id(tensor) in packed else tensor.element_size()
        if form and id(tensor) not in packed and tensor.is_floating_point():
            width = min(width, 2)
        total += tensor.numel() * width
    return math.ceil(total)


def free_bytes(device: torch.device) -> int:
    """Return the free bytes on `device`, including what PyTorch keeps for reuse."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # There is no control group, or it has no limit.
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(cache.get("inactive_file", 0)))
    return free


def free_for(model: Any) -> int:
    """Return the free bytes on the device where the weights of `model` are or will be."""
    device = _device_of(weights_of(model))
    if device is None and torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        return sum(free_bytes(torch.device("cuda", card)) for card in cards)
    return free_bytes(device or torch.device("cpu"))


def _device_of(model: Any) -> torch.device | None:
    """Return the device for the weights of `model`, ``None`` if accelerate spreads them."""
    if _loaded(model):
        return next(iter(_each(hosts.module_of(model)))).device
    there = model.kwargs.get("device_map", model.kwargs.get("device"))
    if isinstance(there, dict):
        devices = {str(device) for device in there.values()}
        there = devices.pop() if len(devices) == 1 else "auto"
    has_cuda = torch.cuda.is_available()
    if there is None or there in _SPREAD:
        if has_cuda:
            return None if there in _SPREAD else torch.device("cuda", 0)
        return torch.device("cpu") if not torch.accelerator.is_available() else None
    try:
        device = torch.device(f"cuda:{there}" if str(there).isdigit() else there)
    except (RuntimeError, TypeError):  # transformers reports what is wrong with it.
        return None
    return device if device.type == "cpu" or (device.type == "cuda" and has_cuda) else None


def _check_idle(model: Any, name: str) -> None:
    if _compat.interleaving(model):
        raise VerbalizationError(
            f"A trace is running on {name}, whose weights would have to make room "
            "(placement='sequential'). Read the text after the `with` block; the vectors are kept "
            "until then."
        )


def _check_plain(model: Any) -> None:
    """Refuse quantized and sharded tensors: they have state that would not move with them."""
    special = {type(tensor).__name__ for tensor in _each(hosts.module_of(model))} - {
        "Tensor",
        "Parameter",
    }
    if special:
        raise CheckpointError(
            f"{hosts.describe(model)} has tensors of type {', '.join(sorted(special))}; "
            "placement='sequential' moves plain tensors only. Load the target in a torch dtype, or "
            "keep both models loaded: NLA(..., placement='together', dtype='nf4')."
        )


def _loaded(model: Any) -> bool:
    return bool(getattr(model, "dispatched", True))


def _held(model: Any, device: torch.device) -> int:
    return sum(each.nbytes for each in _each(hosts.module_of(model)) if each.device == device)


def _each(module: nn.Module) -> Iterator[Tensor]:
    """Yield every parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(cast("Any", storage))


def _free() -> None:
    """Return memory to the operating system, not only to the allocators."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(
        OSError, AttributeError
    ):  # glibc keeps freed memory; others lack this call.
        ctypes.CDLL(None).malloc_trim(0)


def _gb(size: float) -> str:
    return f"{size / 1e9:z.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
