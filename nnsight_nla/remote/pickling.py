"""The client's side of a remote run: what an NLA and its handles become when they are pickled.

Who pickles decides. A *remote request* (nnsight's own pickler, told apart by its dispatch table)
gets the stand-ins of `wire`, always, also where the server has this package. Everything else (a
worker process, a file) gets an ordinary pickle: an `NLA` that is rebuilt from its arguments, an
`Explanation` that carries its texts. What comes back from a server is remade by `receive_capture`
and `receive_handle`, which never raise on a value: a result is not lost because an option was bad.
"""

from __future__ import annotations

import ast
import copyreg
import hashlib
import itertools
import sys
import types
import weakref
from collections import ChainMap
from collections.abc import Sequence
from typing import Any

import nnsight
import numpy as np
import torch
from nnsight import Envoy
from nnsight.intervention.serialization import CustomCloudPickler
from nnsight.schema.request import RequestModel

from ..checkpoint.checkpoint import Checkpoint
from ..core.injection import Injection
from ..core.sampling import Sampling
from ..errors import NLAError, VerbalizationError
from ..explanation.handle import Explanation
from ..explanation.records import Capture, Receipt
from ..models.hosts import Positions
from . import wire

NLAS: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
"""Every NLA of this process, by its uid."""
_CAPTURES: weakref.WeakValueDictionary[str, Capture] = weakref.WeakValueDictionary()
"""Captures that have crossed the wire, so that one that comes back is the same one."""

# Shipped as source with a request: the stand-ins, and the modules whose functions run inside the
# verbalizer's own block.
_BY_VALUE = (
    "nnsight_nla.remote.wire",
    "nnsight_nla.models.blocks",
    "nnsight_nla.core.injection",
    "nnsight_nla.core.sampling",
    "nnsight_nla.verbalize.decoding",
)
_NEEDS_TEXT = {
    "text",
    "samples",
    "snippets",
    "raw",
    "finish",
    "warnings",
    "errors",
    "receipt",
    "trust",
}
_MODELS = {"av", "ar"}


class Unavailable:
    """The queue of handles whose NLA is not in this process: their vectors and texts are."""

    def __init__(self, why: str, receipt: Receipt | None = None) -> None:
        """Keep the reason, and the receipt where there is one."""
        self.why = why
        self.owner = None
        self._receipt = receipt

    def add(self, handle: Explanation) -> None:
        """Nothing waits here, for there is nobody to wait for."""

    def resolve(self, first: Any, *, implicit: bool = False) -> None:  # noqa: ARG002
        """Say why there is no text.

        Raises:
            VerbalizationError: Always.
        """
        raise VerbalizationError(self.why)

    def receipt(self, capture: Capture) -> Receipt:  # noqa: ARG002
        """The receipt that travelled with the texts.

        Raises:
            VerbalizationError: There is none.
        """
        if self._receipt is None:
            raise VerbalizationError(self.why)
        return self._receipt


def enter(nla: Any) -> str:
    """Register an NLA and name it: the same arguments give the same name in every process."""
    spec = "live model" if nla.spec is None else repr(sorted(nla.spec.items(), key=str))
    stem = hashlib.blake2b(spec.encode(), digest_size=8).hexdigest()
    uid = next(f"{stem}-{n}" for n in itertools.count() if f"{stem}-{n}" not in NLAS)
    NLAS[uid] = nla
    return uid


def join_requests(nla_class: type) -> None:
    """Tell each pickler what our values become: nnsight's for requests, and all others."""
    ours = {
        nla_class: _ship_nla,
        Explanation: _ship_handle,
        Capture: _ship_capture,
        Sampling: lambda it: (wire.Sealed, ("nnsight_nla.core.sampling.Sampling", _values(it))),
        Injection: _as_namespace,
        Checkpoint: _as_namespace,
        wire.Direction: lambda it: (wire.direction, (it.detach().as_subclass(torch.Tensor),)),
        Positions: lambda it: _as_namespace(it, slice=it.slice, positions=it.positions),
    }
    CustomCloudPickler.dispatch_table = ChainMap(ours, CustomCloudPickler.dispatch_table)
    for module in _BY_VALUE:
        nnsight.register(module)
    copyreg.pickle(nla_class, _reduce_nla)
    copyreg.pickle(Explanation, _reduce_handle)
    copyreg.pickle(Capture, _reduce_capture)


def _ship_nla(nla: Any) -> tuple[Any, ...]:
    _check_block(nla)
    return (wire.RemoteNLA, (nla.uid, nla.checkpoint.layer, nla.checkpoint.d_model))


def _ship_handle(handle: Explanation) -> tuple[Any, ...]:
    return (wire.handle, (handle._capture, handle._rows.reshape(-1).tolist(), handle.shape))


def _ship_capture(capture: Capture) -> tuple[Any, ...]:
    _CAPTURES[capture.uid] = capture
    owner = getattr(capture.queue.owner, "uid", "")
    vectors = None if capture.vectors is None else capture.vectors.cpu().clone()
    return (wire.RemoteCapture, (owner, capture.uid, vectors, {}))


def receive_capture(owner: str, uid: str, vectors: Any, options: dict[str, Any]) -> Capture:
    """Remake what an ``explain()`` call captured on a server; never raises on a value."""
    if uid in _CAPTURES:
        return _CAPTURES[uid]
    nla = NLAS.get(owner)
    if nla is None:
        queue: Any = Unavailable(
            "The NLA that explained this in a remote run is gone from this process. Make it again "
            "and explain the vectors: nla.explain(thought.vectors)."
        )
        capture = Capture(queue, vectors, len(vectors), 1, Sampling())
    else:
        try:
            capture = nla._capture(vectors, **options)
        except NLAError as error:
            capture = nla._capture(vectors, shape=options["shape"])
            why = f"was captured with options that do not fit: {error}"
            capture.errors.update(dict.fromkeys(range(capture.count), why))
    capture.uid = uid
    _CAPTURES[uid] = capture
    return capture


def receive_handle(capture: Capture, rows: Sequence[int], shape: tuple[int, ...]) -> Explanation:
    """Remake a handle on a capture that came back."""
    return Explanation(capture, np.array(rows, dtype=np.int64).reshape(shape))


def _reduce_nla(nla: Any) -> tuple[Any, ...]:
    """An NLA in an ordinary pickle: its arguments, or the news that it cannot travel."""
    about = None if nla.spec is not None else (nla.checkpoint, nla.prompt, nla.sampling)
    return (_restore_nla, (type(nla), nla.uid, nla.spec, about))


def _reduce_handle(handle: Explanation) -> tuple[Any, ...]:
    """A handle in an ordinary pickle: its capture and its rows."""
    return (receive_handle, (handle._capture, handle._rows.reshape(-1).tolist(), handle.shape))


def _reduce_capture(capture: Capture) -> tuple[Any, ...]:
    """A capture in an ordinary pickle: vectors on the CPU, texts, and its receipt."""
    owner = capture.queue.owner
    receipt = capture.queue.receipt(capture) if capture.replies else None
    state = {name: value for name, value in vars(capture).items() if name != "queue"}
    if capture.vectors is not None:
        state["vectors"] = capture.vectors.cpu()
    return (_restore_capture, (owner, receipt, state))


def _restore_nla(
    kind: type, uid: str, spec: dict[str, Any] | None, about: tuple[Any, ...] | None
) -> Any:
    if uid in NLAS:
        return NLAS[uid]
    if spec is not None:
        return kind(**spec)
    nla = kind.__new__(kind)
    nla.checkpoint, nla.prompt, nla.sampling = about or (None, None, None)
    nla.uid, nla.spec, nla.av = uid, None, None
    nla._queue = Unavailable(
        "This NLA was built on a live model and then sent to another process, where that model is "
        "not. Build it there: NLA(path_or_id)."
    )
    return nla


def _restore_capture(owner: Any, receipt: Receipt | None, state: dict[str, Any]) -> Capture:
    queue = Unavailable("The NLA that explained this is not in this process.", receipt)
    if owner is not None:
        queue = owner._queue
        if isinstance(queue, Unavailable):
            queue = Unavailable(queue.why, receipt)
            queue.owner = owner
    return Capture(queue, **state)


def _as_namespace(value: Any, **more: Any) -> tuple[Any, ...]:
    return (types.SimpleNamespace, (), {**vars(value), **more})


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(vars(record).values())


def _check_block(nla: Any) -> None:
    """Refuse, before anything is sent, what cannot work inside a remote block."""
    tracer = _requested()
    if tracer is None:
        return
    scope = {**tracer.info.frame.f_globals, **tracer.info.frame.f_locals}
    nodes = [node for part in tracer.node.body for node in ast.walk(part)]
    named = {node.id for node in nodes if isinstance(node, ast.Name)}
    ours = {name for name in named if type(scope.get(name)) is type(nla)}
    handles = _handles(nodes, ours)
    target = getattr(tracer, "envoy", None)
    models = {id(found.root): found.root for found in [target] if found is not None}
    for name in named:
        value = scope.get(name)
        if isinstance(value, Envoy):
            models[id(value.root)] = value.root
    for node in nodes:
        if not isinstance(node, ast.Attribute):
            continue
        root = _root(node.value)
        if node.attr in _NEEDS_TEXT and (root in handles or _is_explain(node.value, ours)):
            raise VerbalizationError(f"line {node.lineno}: .{node.attr}: {wire.LATER}")
        if node.attr in _MODELS and root in ours:
            raise VerbalizationError(f"line {node.lineno}: {root}.{node.attr}: {_ONE_MODEL}")
    if len(models) > 1:
        raise VerbalizationError(f"this block names {len(models)} models: {_ONE_MODEL}")
    from ..models.adapter import weights_of

    here = weights_of(nla.av)
    if not nla.remote and any(
        model is nla.av or (model is here and not model.dispatched) for model in models.values()
    ):
        raise VerbalizationError(
            "the verbalizer is the very model that this block runs remotely, so its text would "
            "load the weights here. Let it run remotely too: NLA(model, remote=True), or "
            "NLA.on(model, av=..., remote=True) for an adapter."
        )


_ONE_MODEL = (
    "a remote request runs one model, and another one's modules would silently be the served "
    "model's. Use two requests, and read the first one's saved values in the second."
)


def _requested() -> Any:
    """The tracer whose request is being pickled right now, found on the stack."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is RequestModel.serialize.__func__.__code__:
            return frame.f_locals["tracer"]
        frame = frame.f_back
    return None


def _handles(nodes: list[ast.AST], ours: set[str]) -> set[str]:
    """The names that the block binds to what an ``explain()`` of ours returns."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and _is_explain(node.value, ours):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _is_explain(node: ast.AST, ours: set[str]) -> bool:
    """Whether an expression is ``nla.explain(...)``, or a part of it."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "explain"
        and _root(node.func.value) in ours
    )


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
