"""What travels with a remote request: an NLA that needs nothing but torch and nnsight.

A block that names an `NLA` is run on a server that has never heard of this package. The request
therefore carries a `RemoteNLA` in its place, *by value* (as source), with the same ``layer()`` and
``explain()``. What it returns, a `RemoteExplanation`, pickles as a call to the client's own
constructor, found by name only where the result is read: so the client gets a real `Explanation`.

Because it travels as source, nothing here may use decorators other than ``property``, zero-argument
``super``, ``nonlocal``, or a module that a server lacks; and it imports nothing of ours.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import nnsight
import numpy as np
import torch

from .._compat import module_of
from ..models.blocks import find_blocks

CAPTURE = "nnsight_nla.remote.pickling.receive_capture"
HANDLE = "nnsight_nla.remote.pickling.receive_handle"
LATER = (
    "The text of a remote explanation is made on the client, after the block: read .text there. "
    "Inside the block a handle has .shape, .vectors, indexing, len and iteration."
)


class Direction(torch.Tensor):
    """A vector that is added wherever the residual lives: it takes that one's device and dtype.

    ``layer.output[:, -1] += 2 * direction`` works for a half-precision model on an accelerator, on
    this machine or on a server. Numbers scale it; anything else gives a plain tensor.
    """

    def __torch_function__(cls, func, types, args=(), kwargs=None):  # noqa: N805
        del types
        kwargs = kwargs or {}
        given = [each for each in (*args, *kwargs.values()) if isinstance(each, torch.Tensor)]
        hosts = [each for each in given if not isinstance(each, Direction) and each.ndim]
        if not hosts:
            return torch.Tensor.__torch_function__.__func__(cls, func, (cls,), args, kwargs)
        plain = [_beside(each, hosts[0]) for each in args]
        named = {name: _beside(value, hosts[0]) for name, value in kwargs.items()}
        return func(*plain, **named)

    __torch_function__ = classmethod(__torch_function__)

    def __deepcopy__(self, memo: Any) -> Any:
        del memo
        return direction(self.detach().as_subclass(torch.Tensor).clone())


def direction(values: Any) -> Direction:
    """A plain tensor as a `Direction`."""
    return values.as_subclass(Direction)


def _beside(value: Any, host: Any) -> Any:
    if not isinstance(value, Direction):
        return value
    return value.as_subclass(torch.Tensor).to(device=host.device, dtype=host.dtype)


class Located:
    """A function known by its name alone, looked up where it is unpickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        """Nothing is called on the server."""
        del args
        raise RuntimeError(f"{self.name} is called where the result is read, not here")

    def __reduce__(self) -> Any:
        import pydoc

        return (pydoc.locate, (self.name,))


class Sealed:
    """A client's value that the server only carries: it is remade on the way back."""

    def __init__(self, name: str, args: tuple[Any, ...]) -> None:
        self.name = name
        self.args = args

    def __reduce__(self) -> Any:
        return (Located(self.name), self.args)


class RemoteCapture:
    """The vectors of one ``explain()`` call on the server."""

    def __init__(self, nla: str, uid: str, vectors: Any, options: dict[str, Any]) -> None:
        self.nla = nla
        self.uid = uid
        self.vectors = vectors
        self.options = options

    def __reduce__(self) -> Any:
        vectors = self.vectors
        vectors = None if vectors is None else vectors.detach().cpu().clone()
        return (Located(CAPTURE), (self.nla, self.uid, vectors, self.options))


class RemoteExplanation:
    """A handle on the server: it knows its shape and its vectors, and has no text yet."""

    def __init__(self, capture: RemoteCapture, rows: Any) -> None:
        self.capture = capture
        self.rows = rows

    def __reduce__(self) -> Any:
        flat = self.rows.reshape(-1).tolist()
        rows = range(len(flat)) if flat == list(range(len(flat))) else flat
        return (Located(HANDLE), (self.capture, rows, self.shape))

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        keys = tuple(k.cpu().numpy() if hasattr(k, "cpu") else k for k in keys)
        return nnsight.save(RemoteExplanation(self.capture, np.asarray(self.rows[keys])))

    def __len__(self) -> int:
        if not self.rows.shape:
            raise TypeError("len() of a 0-d explanation")
        return len(self.rows)

    def __iter__(self) -> Any:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"<Explanation shape={self.shape} on the server>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name if name.startswith("__") else f"{name}: {LATER}")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the batch."""
        return tuple(self.rows.shape)

    @property
    def vectors(self) -> Any:
        """The captured vectors, ``[*shape, d_model]``."""
        held = self.capture.vectors
        return held[self.rows.reshape(-1).tolist()].reshape(*self.shape, held.shape[-1])


def handle(capture: RemoteCapture, rows: list[int], shape: tuple[int, ...]) -> RemoteExplanation:
    """A client's handle, as the server sees it."""
    return RemoteExplanation(capture, np.array(rows, dtype=np.int64).reshape(shape))


class RemoteNLA:
    """The stand-in for an `NLA` in a remote block."""

    def __init__(self, uid: str, layer: int, d_model: int) -> None:
        self.uid = uid
        self.block = layer
        self.d_model = d_model

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{name}: inside a remote block an NLA has layer() and explain(); do the rest before "
            "or after the block."
        )

    def layer(self, model: Any) -> Any:
        """The envoy of block K of the served model."""
        path, blocks = find_blocks(module_of(model))
        if self.block >= len(blocks):
            raise ValueError(
                f"the served model has blocks 0 to {len(blocks) - 1}, "
                f"block {self.block} was asked for"
            )
        envoy = model
        for name in path.split("."):
            envoy = getattr(envoy, name)
        return envoy[self.block]

    def explain(
        self,
        vectors: Any,
        *,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Any = None,
    ) -> RemoteExplanation:
        """Capture vectors; the client explains them."""
        shape = tuple(getattr(vectors, "shape", ()))
        if not shape or shape[-1] != self.d_model or not vectors.is_floating_point():
            got = f"{vectors.dtype} {list(shape)}" if shape else type(vectors).__name__
            raise ValueError(
                f"explain() takes a floating-point tensor of shape [..., {self.d_model}], got {got}"
            )
        places = {"tokens": tokens, "positions": positions}
        for name in places:
            if hasattr(places[name], "tolist"):
                places[name] = places[name].tolist()
        options = {"samples": samples, "sampling": sampling, "shape": shape[:-1], **places}
        flat = vectors.detach().reshape(-1, self.d_model).clone()
        uid = uuid.uuid4().hex
        capture = RemoteCapture(self.uid, uid, flat, options)
        rows = np.arange(math.prod(shape[:-1])).reshape(shape[:-1])
        return nnsight.save(RemoteExplanation(capture, rows))
