"""Pickle NLAs and handles for remote requests and for other processes.

The result depends on the pickler. A *remote request* (nnsight's own pickler, recognized by its
dispatch table) always gets the stand-ins of `wire`, even if the server has this package. Any other
pickler (for a worker process, a file) gets an ordinary pickle: an `NLA` is rebuilt from its
arguments, an `Explanation` carries its texts. `receive_capture` and `receive_handle` rebuild what
comes back from a server. They do not raise on a bad option, because that would lose the result.
"""

from __future__ import annotations

import copyreg
import hashlib
import itertools
import types
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack, cast

import nnsight
import numpy as np
import torch

from .. import _compat
from ..checkpoint.checkpoint import Checkpoint
from ..checkpoint.origin import Origin
from ..checkpoint.sidecar import is_hub_id
from ..core.injection import Injection
from ..core.sampling import Sampling
from ..errors import NLAError
from ..explanation.handle import Explanation
from ..explanation.protocols import ExplainsAndReconstructs
from ..explanation.records import Capture, Receipt
from ..explanation.unavailable import Unavailable
from ..models.hosts import Positions
from . import wire
from .block import check_block

if TYPE_CHECKING:
    from torch import Tensor

    from ..explanation.asked import AskOptions
    from ..explanation.capturing import CaptureOptions

# Modules that are shipped as source with a request: the stand-ins, and those whose functions run
# inside the verbalizer's block.
_BY_VALUE = (
    "nnsight_nla._compat",
    "nnsight_nla.remote.wire",
    "nnsight_nla.models.blocks",
    "nnsight_nla.core.injection",
    "nnsight_nla.core.ragged",
    "nnsight_nla.core.sampling",
    "nnsight_nla.verbalize.decoding",
)


class Travels(ExplainsAndReconstructs, Protocol):
    """The part of an NLA that pickling needs."""

    @property
    def uid(self) -> str:
        """Its name in pickles and remote requests."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose residuals the verbalizer was trained on."""
        ...

    @property
    def spec(self) -> dict[str, Any] | None:
        """The arguments that it can be rebuilt from; ``None`` if one of them is a live model."""
        ...

    @property
    def question(self) -> AskOptions | None:
        """The question that it asks about every vector; see `NLA.asking`."""
        ...

    def capture(
        self,
        flat: Tensor | None,
        shape: tuple[int, ...],
        *,
        question: AskOptions | None = None,
        slots: Sequence[int] = (),
        **options: Unpack[CaptureOptions],
    ) -> Capture:
        """Check the options of one ``explain()`` or ``ask()`` call and record its vectors."""
        ...


NLAS: weakref.WeakValueDictionary[str, Travels] = weakref.WeakValueDictionary()
"""All NLAs of this process, by uid."""
_CAPTURES: weakref.WeakValueDictionary[str, Capture] = weakref.WeakValueDictionary()
"""Captures that were sent or received, so that a returning one is the same object."""


def enter(nla: Travels) -> str:
    """Register an NLA and return its uid, which equal arguments share in every process."""
    spec = "live model" if nla.spec is None else repr(sorted(nla.spec.items(), key=str))
    stem = hashlib.blake2b(spec.encode(), digest_size=8).hexdigest()
    uid = next(f"{stem}-{n}" for n in itertools.count() if f"{stem}-{n}" not in NLAS)
    NLAS[uid] = nla
    return uid


def rebuildable(given: dict[str, Any]) -> dict[str, Any] | None:
    """Return the arguments of an NLA if it can be rebuilt from them, ``None`` with a live model.

    Args:
        given: The names and values of `NLA`'s parameters, those of ``load`` included.
    """
    given = {name: value for name, value in given.items() if name not in ("self", "load")}
    plain = (str, Path, int, float, bool, Checkpoint, Injection, Sampling, type(None))
    models = (given["av"], given["ar"], given["target"])
    return given if all(isinstance(each, plain) for each in models) else None


def join_requests(nla_class: type) -> None:
    """Register our types with nnsight's pickler of requests, and with all other picklers."""
    _compat.join_requests(
        {
            nla_class: _ship_nla,
            Explanation: _ship_handle,
            Capture: _ship_capture,
            Sampling: lambda it: (wire.Sealed, (SAMPLING, tuple(vars(it).values()))),
            Origin: _ship_origin,
            Injection: _as_namespace,
            Checkpoint: _ship_checkpoint,
            wire.Direction: lambda it: (wire.direction, (it.detach().as_subclass(torch.Tensor),)),
            Positions: lambda it: _as_namespace(it, slice=it.slice, positions=it.positions),
            **dict.fromkeys(_compat.tracer_types(), _ship_tracer),
        }
    )
    for module in _BY_VALUE:
        nnsight.register(module)
    copyreg.pickle(nla_class, _reduce_nla)
    copyreg.pickle(Explanation, _reduce_handle)
    copyreg.pickle(Capture, _reduce_capture)


ORIGIN = f"{Origin.__module__}.{Origin.__qualname__}"
SAMPLING = f"{Sampling.__module__}.{Sampling.__qualname__}"


def _ship_tracer(tracer: Any) -> Any:
    """Check the block of a request: the tracer is the first object that is pickled."""
    check_block(tracer, list(NLAS.values()))
    return tracer.__reduce_ex__(4)


def _ship_nla(nla: Travels) -> tuple[Any, ...]:
    checkpoint = nla.checkpoint
    held = (nla.uid, checkpoint.layer, checkpoint.d_model, nla.layers)
    kind = wire.RemoteOracle if checkpoint.asks else wire.RemoteNLA
    return (kind, (*held, nla.question, checkpoint.slots))


def _ship_checkpoint(checkpoint: Checkpoint) -> tuple[Any, ...]:
    """Ship the values, without where they were found: paths of this machine stay here."""
    return _as_namespace(checkpoint, source={}, base_model=_without_path(checkpoint.base_model))


def _ship_origin(origin: Origin) -> tuple[Any, ...]:
    """Ship an origin as `_ship_checkpoint` does; the client gets it back."""
    values = {**vars(origin), "model": _without_path(origin.model), "source": {}}
    return (wire.Sealed, (ORIGIN, tuple(values.values())))


def _without_path(name: str | None) -> str | None:
    return name if name is None or is_hub_id(name) else Path(name).name


def _ship_handle(handle: Explanation) -> tuple[Any, ...]:
    return (wire.handle, (handle.capture, handle.rows, handle.shape, handle.lengths))


def _ship_capture(capture: Capture) -> tuple[Any, ...]:
    _CAPTURES[capture.uid] = capture
    owner = "" if capture.queue.owner is None else capture.queue.owner.uid
    vectors = None if capture.vectors is None else capture.vectors.cpu().clone()
    return (wire.RemoteCapture, (owner, capture.uid, vectors, {}))


def receive_capture(owner: str, uid: str, vectors: Any, options: dict[str, Any]) -> Capture:
    """Rebuild a capture from a server; bad options become errors of its rows."""
    if uid in _CAPTURES:
        return _CAPTURES[uid]
    nla = NLAS.get(owner)
    if nla is None:
        queue = Unavailable(
            "The NLA that explained this in a remote run no longer exists in this process. Create "
            "it again and explain the vectors: nla.explain(thought.vectors)."
        )
        capture = Capture(queue, vectors, len(vectors), 1, Sampling())
    else:
        try:
            capture = nla.capture(vectors, **options)
        except NLAError as error:
            capture = nla.capture(vectors, shape=options["shape"])
            why = f"was captured with options that do not fit: {error}"
            capture.errors.update(dict.fromkeys(range(capture.count), why))
    capture.uid = uid
    _CAPTURES[uid] = capture
    return capture


def receive_handle(
    capture: Capture,
    rows: Sequence[int],
    shape: tuple[int, ...],
    lengths: Sequence[int] | None = None,
) -> Explanation:
    """Rebuild a handle from a server on its capture."""
    return Explanation(capture, np.array(rows, dtype=np.int64).reshape(shape), lengths)


def _reduce_nla(nla: Travels) -> tuple[Any, ...]:
    """Pickle an NLA as its arguments, or as a placeholder if it has a live model."""
    about = None if nla.spec is not None else (nla.checkpoint, nla.prompt, nla.sampling)
    return (_restore_nla, (type(nla), nla.uid, nla.spec, about))


def _reduce_handle(handle: Explanation) -> tuple[Any, ...]:
    """Pickle a handle as its capture and its rows."""
    return (receive_handle, (handle.capture, handle.rows, handle.shape, handle.lengths))


def _reduce_capture(capture: Capture) -> tuple[Any, ...]:
    """Pickle a capture as its vectors on the CPU, its texts and its receipt."""
    receipt = capture.queue.receipt(capture) if capture.replies else None
    state = {
        name: value for name, value in vars(capture).items() if name not in ("queue", "labeller")
    }
    if capture.vectors is not None:
        state["vectors"] = capture.vectors.cpu()
    return (_restore_capture, (capture.queue.owner, receipt, state))


def _restore_nla(
    kind: Callable[..., Travels],
    uid: str,
    spec: dict[str, Any] | None,
    about: tuple[Any, ...] | None,
) -> Travels:
    if uid in NLAS:
        return NLAS[uid]
    if spec is not None:
        return kind(**spec)
    nla = cast("Any", kind).__new__(kind)
    nla.checkpoint, nla.prompt, nla.sampling = about or (None, None, None)
    nla.uid, nla.spec, nla.runtime, nla.labeller, nla.question = uid, None, None, None, None
    nla._template, nla._by_layer = nla.checkpoint, {}
    nla.queue = Unavailable(
        "This NLA was built on a live model and then sent to another process, which does not have "
        "that model. Build it there: NLA(path_or_id)."
    )
    return nla


def _restore_capture(owner: Any, receipt: Receipt | None, state: dict[str, Any]) -> Capture:
    if owner is None:
        why = "The NLA that explained this is not in this process."
        return Capture(Unavailable(why, receipt), **state)
    queue = owner.queue
    if isinstance(queue, Unavailable):
        queue = Unavailable(queue.why, receipt, owner)
    return Capture(queue, labeller=owner.labeller, **state)


def _as_namespace(value: Any, **more: Any) -> tuple[Any, ...]:
    return (types.SimpleNamespace, (), {**vars(value), **more})
