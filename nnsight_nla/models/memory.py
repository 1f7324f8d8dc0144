"""Whose weights are in memory, and when: the target, the verbalizer and the reconstructor.

Handles make "capture now, verbalize later" possible, so the three need not be there at once. With
``placement="sequential"`` one of them is, the one whose *turn* it is::

    with places.turn(av):       # the target makes room, the reconstructor is unloaded
        ...                     # the verbalizer loads and runs
                                # ... is unloaded, and the target is back, also after an error

The **target** is every model that was given to `NLA.layer` (and so to `read` and to the
experiments), held weakly, and the one passed as ``NLA(..., target=model)``. It *makes room* where
it is: from an accelerator its tensors go to the CPU, from the CPU to a temporary file (in
``TMPDIR``, which must lie on a disk, not in memory). They come back from there, never from the
checkpoint, so bit for bit as they were, with what you changed in them: same device, same dtype.
The modules stay, and with them hooks, envoys, edits and adapters. A live model that you passed as
a half makes room likewise. A half that was loaded here, by path or id, is *unloaded*, and read
again from its checkpoint at its next turn.

Gradients and optimizer states do not move, and a model that is not loaded here (one that runs on a
host) has nothing to move.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import tempfile
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from .. import _compat
from ..errors import CheckpointError, NLAError, VerbalizationError
from . import hosts
from .adapter import AdapterModel, weights_of

Placement = Literal["together", "sequential"]

_TURN = threading.RLock()
_SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")


class Memory:
    """The models of one NLA, and which of them make room for which."""

    def __init__(self, placement: Placement = "together", target: Any = None) -> None:
        """Register the target, where there is one.

        Raises:
            CheckpointError: `placement` is neither ``"together"`` nor ``"sequential"``.
        """
        if placement not in get_args(Placement):
            listed = " or ".join(f"{each!r}" for each in get_args(Placement))
            raise CheckpointError(f"placement={placement!r}: expected {listed}.")
        self.placement = placement
        self._targets: weakref.WeakSet[Any] = weakref.WeakSet()
        self._models: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._loaded_here: weakref.WeakSet[Any] = weakref.WeakSet()
        self._active: Any = None
        self._away: list[Parked] = []
        if target is not None:
            self._targets.add(target)

    def add_target(self, model: Any) -> None:
        """Register a target, for as long as somebody holds it."""
        self._targets.add(model)

    def add_model(self, name: str, model: Any, *, loaded_here: bool) -> None:
        """Register a verbalizer or a reconstructor.

        Args:
            name: What errors call it.
            model: Its nnsight model.
            loaded_here: Whether it came from a path or an id, so that it can be loaded again.
        """
        self._models[model] = name
        if loaded_here:
            self._loaded_here.add(model)

    @contextlib.contextmanager
    def turn(self, model: Any) -> Iterator[None]:
        """Let a model run: others make room for it, and the targets come back at the end.

        Raises:
            CheckpointError: Its weights do not fit where they would go; nothing was loaded.
            VerbalizationError: A trace is running on a model that would have to make room.
        """
        if self.placement == "together":
            self._check_fit(model)
            yield
            return
        with _TURN:
            if self._active is model:
                yield
                return
            self._bring_back()  # What an earlier turn could not.
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
        """Hold what a half needs against what is free, before any of it is loaded."""
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
            f"The {name} {hosts.describe(model)} needs {_gb(needed)} on {device}, and "
            f"{_gb(free)} are free there."
        ]
        if theirs:
            names = ", ".join(hosts.describe(each) for each in targets)
            lines.append(f"The target {names} takes {_gb(theirs)} of it.")
        if self.placement == "together" and needed <= free + room:
            lines.append("One after the other they fit: NLA(..., placement='sequential').")
        else:
            lines.append(
                f"One after the other does not do either: {_gb(free + room)} would be free."
            )
        smaller = ", ".join(
            f"dtype={dtype!r} ({_gb(size(model, dtype))})" for dtype in ("int8", "nf4")
        )
        lines.append(
            f"Smaller: NLA(..., {smaller}). Without a copy of the base, where it ships as an "
            "adapter: NLA.on(model, av=...). On a host: NLA(..., remote=True)."
        )
        raise CheckpointError(" ".join(lines))


class Parked:
    """The tensors of a module while they are elsewhere.

    Whole storages move, so tensors that shared memory share it again when they are back.
    """

    def __init__(self) -> None:
        """Nothing has left yet."""
        self._away: list[tuple[Tensor | int, torch.device, list[tuple[Any, ...]]]] = []
        self._file: IO[bytes] | None = None

    def leave(self, module: nn.Module, keep: set[int]) -> None:
        """Move the tensors of `module` to the CPU, or from the CPU to a file.

        Args:
            module: Whose; it stays as it is, with nothing to compute with.
            keep: Storages (by address) that stay, for they are in use.
        """
        groups: dict[tuple[torch.device, int], list[Tensor]] = {}
        for tensor in _each(module):
            if tensor.device.type != "meta" and tensor.numel():
                groups.setdefault((tensor.device, _storage(tensor)), []).append(tensor)
        for (device, address), tensors in groups.items():
            if address in keep:
                continue
            whole = _bytes(tensors[0].untyped_storage())
            kept = self._write(whole) if device.type == "cpu" else whole.cpu()
            views = [
                (tensor, tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride())
                for tensor in tensors
            ]
            self._away.append((kept, device, views))
            for tensor in tensors:
                nothing = torch.empty(0, dtype=tensor.dtype)
                tensor.data = nothing if isinstance(kept, int) else nothing.to(device)
            del whole
        if self._file is not None:
            self._file.flush()

    def back(self) -> None:
        """Put every tensor back; called again after an error, it goes on where it stopped."""
        while self._away:
            kept, device, views = self._away[-1]
            whole = self._read(*self._extent(kept)) if isinstance(kept, int) else kept.to(device)
            for tensor, dtype, offset, shape, stride in views:
                empty = torch.empty(0, dtype=dtype, device=device)
                tensor.data = empty.set_(whole.untyped_storage(), offset, shape, stride)
            self._away.pop()
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, whole: Tensor) -> int:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="nnsight_nla-")  # noqa: SIM115
            self._ends: list[int] = [0]
        self._file.seek(self._ends[-1])
        self._file.write(memoryview(cast("Any", whole.numpy())))
        self._ends.append(self._ends[-1] + whole.numel())
        return len(self._ends) - 2

    def _extent(self, number: int) -> tuple[int, int]:
        return self._ends[number], self._ends[number + 1] - self._ends[number]

    def _read(self, start: int, length: int) -> Tensor:
        whole = torch.empty(length, dtype=torch.uint8)
        file = cast("Any", self._file)
        file.seek(start)
        got = file.readinto(memoryview(cast("Any", whole.numpy())))
        if got != length:
            raise NLAError(f"The target's weights were cut short in {tempfile.gettempdir()}.")
        return whole


def load_weights(model: Any) -> None:
    """Load the weights of a half, unless they are there; it is then ready to run, not to train.

    Raises:
        CheckpointError: A library that its format needs is not installed.
    """
    if _loaded(model):
        if isinstance(model, AdapterModel):
            model.follow()  # Not only traces run it.
        return
    try:
        model.dispatch()
    except ImportError as error:
        dtype = model.kwargs.get("dtype")
        needs = "bitsandbytes" if "bitsandbytes" in str(error) else str(error.name or "it")
        raise CheckpointError(
            f"{hosts.describe(model)} cannot be loaded as dtype={dtype!r}: "
            f"{str(error).strip().splitlines()[0]} Install what it needs (pip install {needs}), or "
            "load it in a torch dtype: NLA(..., dtype='bfloat16')."
        ) from error
    # An adapter is attached after the model was made ready, and brings its dropout.
    hosts.module_of(model).eval()


def unload(model: Any) -> None:
    """Drop the weights of a model that was loaded from a checkpoint; its envoys stay.

    It is as it was before it first ran, and loads again when it runs again. PyTorch hooks that were
    put on its modules go with them.

    Raises:
        VerbalizationError: A trace is running on it.
    """
    if not _loaded(model):
        return
    _check_idle(model, hosts.describe(model))
    _compat.drop_weights(model)
    _free()


def size(model: Any, dtype: Any = None) -> int:
    """The bytes that the weights of a model take once it is loaded, those that are there left out.

    Args:
        model: An nnsight model, read without its weights.
        dtype: As nnsight takes it, for what it would be in another one; a quantized one holds the
            blocks' matrices in fewer bits and the rest as it computes.
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
    """What can still be held on `device`: memory that PyTorch keeps for reuse counts as free."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    free = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):  # No control group, or one without a limit.
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, limit - used + int(cache.get("inactive_file", 0)))
    return free


def free_for(model: Any) -> int:
    """What can still be held where the weights of `model` are, or where they will go."""
    device = _device_of(weights_of(model))
    if device is None and torch.cuda.is_available():
        cards = range(torch.cuda.device_count())
        return sum(free_bytes(torch.device("cuda", card)) for card in cards)
    return free_bytes(device or torch.device("cpu"))


def _device_of(model: Any) -> torch.device | None:
    """Where the weights of `model` would go, ``None`` where accelerate spreads them itself."""
    if _loaded(model):
        return next(iter(_each(hosts.module_of(model)))).device
    there = model.kwargs.get("device_map", model.kwargs.get("device"))
    if isinstance(there, dict):
        places = {str(place) for place in there.values()}
        there = places.pop() if len(places) == 1 else "auto"
    has_cuda = torch.cuda.is_available()
    if there is None or there in _SPREAD:
        if has_cuda:
            return None if there in _SPREAD else torch.device("cuda", 0)
        return torch.device("cpu") if not torch.accelerator.is_available() else None
    try:
        device = torch.device(f"cuda:{there}" if str(there).isdigit() else there)
    except (RuntimeError, TypeError):  # transformers says what is wrong with it.
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
    """Quantized and sharded tensors keep state beside their memory, which would not move along."""
    strange = {type(tensor).__name__ for tensor in _each(hosts.module_of(model))} - {
        "Tensor",
        "Parameter",
    }
    if strange:
        raise CheckpointError(
            f"{hosts.describe(model)} holds {', '.join(sorted(strange))}, which cannot make room "
            "(placement='sequential' moves plain tensors). Load the target in a torch dtype, or "
            "keep both there: NLA(..., placement='together', dtype='nf4')."
        )


def _loaded(model: Any) -> bool:
    return bool(getattr(model, "dispatched", True))


def _held(model: Any, device: torch.device) -> int:
    return sum(each.nbytes for each in _each(hosts.module_of(model)) if each.device == device)


def _each(module: nn.Module) -> Iterator[Tensor]:
    """Every parameter and buffer once."""
    yield from module.parameters()
    yield from module.buffers()


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(cast("Any", storage))


def _free() -> None:
    """Give memory back to the system, not only to the allocators."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what was freed in pieces.
        ctypes.CDLL(None).malloc_trim(0)


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
