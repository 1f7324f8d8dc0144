"""Stand-ins for an NLA and its handles in a remote request, which need only torch and nnsight.

A trace that uses an `NLA` may run on a server that does not have this package. The request
therefore sends a `RemoteNLA` in its place, *by value* (as source code), with the same ``layer()``,
``explain()`` and ``ask()``. These return a `RemoteExplanation`, which pickles as a call to the
client's own constructor. The client looks up that constructor by name and gets a real
`Explanation`.

This module is sent as source code. So it must not use decorators other than ``property``,
zero-argument ``super``, ``nonlocal``, or modules that a server lacks, and from this package it
imports only modules that are sent in the same way.
"""

from __future__ import annotations

import math
import uuid
from typing import Any

import nnsight
import numpy as np
import torch

from .._compat import module_of
from ..core.ragged import misfit, picked, ranges
from ..models.blocks import find_blocks, residual_envoy

CAPTURE = "nnsight_nla.remote.pickling.receive_capture"
HANDLE = "nnsight_nla.remote.pickling.receive_handle"
LATER = (
    "The text of a remote explanation is generated on the client: read it after the block. "
    "Inside the block a handle has .shape, .vectors, indexing, len and iteration."
)


# ``layer.output[:, -1] += 2 * direction`` works for a half-precision model on an accelerator, on
# this machine or on a server. Only a floating-point tensor with an axis is such a residual, and
# the result is then a plain tensor. Numbers, masks and indices leave the values as they are.
class Direction(torch.Tensor):
    """A vector that takes the device and dtype of the residual it is combined with."""

    def __torch_function__(cls: Any, func, types, args=(), kwargs=None):  # noqa: N805
        del types
        kwargs = kwargs or {}
        given = _tensors((args, kwargs))
        hosts = [each for each in given if _is_host(each)]
        if not hosts or _writes_into(func, args, kwargs):
            found = torch.Tensor.__torch_function__.__func__(cls, func, (cls,), args, kwargs)
            return _map(_plain_unless_floating, found)
        return func(*_map(_cast_to(hosts[0]), args), **_map(_cast_to(hosts[0]), kwargs))

    # As a decorator it could not be shipped.
    __torch_function__ = classmethod(__torch_function__)  # pyright: ignore[reportAssignmentType]

    def __deepcopy__(self, memo: Any) -> Any:
        del memo
        return direction(self.detach().as_subclass(torch.Tensor).clone())


def direction(values: Any) -> Direction:
    """Return a plain tensor as a `Direction`."""
    return values.as_subclass(Direction)


def _tensors(value: Any) -> list[Any]:
    """Return all tensors in nested arguments, in order."""
    if isinstance(value, dict):
        return _tensors(list(value.values()))
    if isinstance(value, list | tuple):
        return [each for part in value for each in _tensors(part)]
    return [value] if isinstance(value, torch.Tensor) else []


def _map(change: Any, value: Any) -> Any:
    """Apply a function to every tensor in nested arguments or results."""
    if isinstance(value, dict):
        return {name: _map(change, each) for name, each in value.items()}
    if isinstance(value, list | tuple) and _tensors(value):
        parts = [_map(change, each) for each in value]
        named = hasattr(value, "_fields")  # A namedtuple takes its values one by one.
        return type(value)(*parts) if named else type(value)(parts)
    return change(value) if isinstance(value, torch.Tensor) else value


def _is_host(tensor: Any) -> bool:
    return not isinstance(tensor, Direction) and tensor.is_floating_point() and tensor.ndim > 0


def _writes_into(func: Any, args: Any, kwargs: Any) -> bool:
    """Return whether an operation writes into a `Direction`, which must not be a copy then."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    in_place = in_place or name in ("__setitem__", "__set__")
    in_place = in_place or (name.startswith("__i") and name not in ("__index__", "__invert__"))
    target = kwargs.get("out", args[0] if in_place and args else None)
    return any(isinstance(each, Direction) for each in _tensors([target]))


def _cast_to(host: Any) -> Any:
    def cast(value: Any) -> Any:
        if not isinstance(value, Direction):
            return value
        plain = value.as_subclass(torch.Tensor)
        dtype = host.dtype if plain.is_floating_point() else plain.dtype
        return plain.to(device=host.device, dtype=dtype)

    return cast


def _plain_unless_floating(value: Any) -> Any:
    """Return an index, a mask or a count that an operation made as a plain tensor."""
    if isinstance(value, Direction) and not value.is_floating_point():
        return value.as_subclass(torch.Tensor)
    return value


class Located:
    """A function that is known by name and looked up where it is unpickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any) -> Any:
        """Raise: the function exists on the client only."""
        del args
        raise RuntimeError(f"{self.name} can only be called where the result is read")

    def __reduce__(self) -> Any:
        import pydoc

        return (pydoc.locate, (self.name,))


class Sealed:
    """A value of the client that the server passes through; the client rebuilds it."""

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
    """A handle on the server: it has a shape and vectors, but no text yet."""

    def __init__(self, capture: RemoteCapture, rows: Any, lengths: Any = None) -> None:
        self.capture = capture
        self.rows = rows
        self.lengths = lengths

    def __reduce__(self) -> Any:
        flat = self.rows.reshape(-1).tolist()
        rows = range(len(flat)) if flat == list(range(len(flat))) else flat
        return (Located(HANDLE), (self.capture, rows, self.shape, self.lengths))

    def __getitem__(self, key: Any) -> Any:
        if self.lengths is not None:
            first = key[0] if isinstance(key, tuple) else key
            if not isinstance(first, int):
                raise TypeError("inside the block a ragged handle has whole numbers as indices")
            rows = list(ranges(self.lengths)[first])
            prompt = RemoteExplanation(self.capture, self.rows[rows])
            return prompt[key[1:]] if isinstance(key, tuple) and key[1:] else nnsight.save(prompt)
        keys = key if isinstance(key, tuple) else (key,)
        keys = tuple(k.cpu().numpy() if hasattr(k, "cpu") else k for k in keys)
        return nnsight.save(RemoteExplanation(self.capture, np.asarray(self.rows[keys])))

    def __len__(self) -> int:
        if self.lengths is not None:
            return len(self.lengths)
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
        """The shape of the handle."""
        return tuple(self.rows.shape)

    @property
    def vectors(self) -> Any:
        """The captured vectors, ``[*shape, d_model]``."""
        held = self.capture.vectors
        slots = self.capture.options.get("slots")
        if slots is not None:
            picked = held[self.rows.reshape(-1).tolist()]
            if len(set(slots)) > 1:
                counts = [slots[row] for row in self.rows.reshape(-1).tolist()]
                return [each[:count] for each, count in zip(picked, counts)]  # noqa: B905
            return picked.reshape(*self.shape, *held.shape[1:])
        return held[self.rows.reshape(-1).tolist()].reshape(*self.shape, held.shape[-1])


def handle(
    capture: RemoteCapture, rows: list[int], shape: tuple[int, ...], lengths: Any = None
) -> RemoteExplanation:
    """Return the stand-in of a client's handle."""
    return RemoteExplanation(capture, np.array(rows, dtype=np.int64).reshape(shape), lengths)


class RemoteNLA:
    """The stand-in for an `NLA` in a remote block."""

    asks = False

    def __init__(
        self,
        uid: str,
        layer: int,
        d_model: int,
        layers: tuple[int, ...] = (),
        question: Any = None,
        vectors: int = 1,
    ) -> None:
        self.uid = uid
        self.block = layer
        self.d_model = d_model
        self.layers = layers or (layer,)
        self.question = question
        self.vectors = vectors

    def _told(self, layer: int | None, claims: str) -> int:
        """Return a block of those that the verbalizer was trained on, by default block K."""
        if layer is None:
            return self.block
        if layer not in self.layers and claims != "ignore":
            raise ValueError(
                f"layer={layer}: the verbalizer was trained on {', '.join(map(str, self.layers))}"
            )
        return layer

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(
            f"{name}: inside a remote block an NLA has layer(), explain() and ask() only; use the "
            "rest before or after the block."
        )

    def layer(self, model: Any, layer: int | None = None, *, claims: str = "check") -> Any:
        """Return the envoy of block K of the served model; its output is the residual."""
        number = self._told(layer, claims)
        path, blocks = find_blocks(module_of(model))
        if number >= len(blocks):
            raise ValueError(
                f"the served model has blocks 0 to {len(blocks) - 1}; block {number} was requested"
            )
        envoy = model
        for name in path.split("."):
            envoy = getattr(envoy, name)
        return residual_envoy(envoy[number])

    def explain(
        self,
        vectors: Any,
        *,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Any = None,
        origin: Any = None,
        claims: str = "check",
        layer: int | None = None,
        kind: str | None = None,
        at: Any = None,
    ) -> RemoteExplanation:
        """Capture vectors, which the client will explain."""
        if self.question is None and self.asks:
            raise ValueError("an activation oracle answers questions: ask(vectors, question)")
        self._told(layer, claims)
        shape = tuple(getattr(vectors, "shape", ()))
        if not shape or shape[-1] != self.d_model or not vectors.is_floating_point():
            got = f"{vectors.dtype} {list(shape)}" if shape else type(vectors).__name__
            raise ValueError(
                f"explain() takes a floating-point tensor of shape [..., {self.d_model}], got {got}"
            )
        kind = kind or ("direction" if isinstance(vectors, Direction) else None)
        lengths = None
        if at is not None:
            one = hasattr(at, "slice")
            places = [at] if one else list(at)
            batch = vectors[None] if one and vectors.ndim == 2 else vectors
            why = misfit(batch.shape, places)
            if why is None and (tokens is not None or positions is not None):
                why = "at= says tokens and positions already"
            if why is not None:
                raise ValueError(why)
            vectors = picked(batch, places)
            shape = tuple(vectors.shape)
            lengths = None if one else tuple(len(each.ids) for each in places)
            tokens = [token for each in places for token in each.tokens]
            positions = [number for each in places for number in range(len(each.ids))]
        several = self.vectors
        if several > 1 and (at is not None or len(shape) < 2 or shape[-2] != several):
            raise ValueError(
                f"explain() takes {several} vectors, one for each marker: "
                f"[..., {several}, {self.d_model}], got {list(shape)}"
            )
        shape = shape[:-2] if several > 1 else shape[:-1]
        labels = {"tokens": tokens, "positions": positions}
        for name in labels:
            if hasattr(labels[name], "tolist"):
                labels[name] = labels[name].tolist()
        options = {"samples": samples, "sampling": sampling, "shape": shape, **labels}
        options |= {"origin": origin, "claims": claims, "kind": kind}
        if layer is not None:
            options["layer"] = layer
        if lengths is not None:
            options["lengths"] = lengths
        flat = vectors.detach().reshape(-1, self.d_model).clone()
        if several > 1:
            flat = flat.reshape(-1, several, self.d_model)
            options["slots"] = (several,) * len(flat)
        if self.question is not None:
            flat = flat[:, None]
            options |= {"question": self.question, "slots": (1,) * len(flat)}
        return self._captured(flat, options, lengths)

    def ask(self, *args: Any, **options: Any) -> RemoteExplanation:
        """Refuse: see `RemoteOracle`."""
        del args, options
        raise ValueError("this NLA explains vectors and cannot be asked: explain(vectors)")

    def _captured(self, flat: Any, options: Any, lengths: Any) -> RemoteExplanation:
        """Return a handle on captured vectors."""
        shape = options["shape"]
        capture = RemoteCapture(self.uid, uuid.uuid4().hex, flat, options)
        rows = np.arange(math.prod(shape)).reshape(shape)
        return nnsight.save(RemoteExplanation(capture, rows, lengths))


class RemoteOracle(RemoteNLA):
    """The stand-in for an oracle: a class of its own, to keep the requests of others small."""

    asks = True

    def ask(
        self,
        vectors: Any,
        questions: Any,
        *,
        choices: Any = None,
        layer: Any = None,
        tokens: Any = None,
        positions: Any = None,
        samples: int = 1,
        sampling: Any = None,
        origin: Any = None,
        claims: str = "check",
    ) -> RemoteExplanation:
        """Capture vectors, which the client will ask about."""
        self._told(layer, claims)
        parts = list(vectors) if isinstance(vectors, list | tuple) else [vectors]
        for each in parts:
            given = tuple(getattr(each, "shape", ()))
            if not given or given[-1] != self.d_model or not each.is_floating_point():
                got = f"{each.dtype} {list(given)}" if given else type(each).__name__
                raise ValueError(
                    f"ask() takes floating-point tensors of shape [..., slots, {self.d_model}], "
                    f"got {got}"
                )
        kind = "direction" if isinstance(vectors, Direction) else None
        if isinstance(vectors, list | tuple):
            if any(each.ndim != 2 or not len(each) for each in parts) or not parts:
                raise ValueError(f"ask() takes a list of tensors [slots, {self.d_model}]")
            slots, shape = tuple(len(each) for each in parts), (len(parts),)
            flat = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True).detach()
        else:
            held = vectors[None] if vectors.ndim == 1 else vectors
            shape, count = tuple(held.shape[:-2]), held.shape[-2]
            if not count:
                raise ValueError("ask() got no vector: pass at least one slot")
            flat = held.detach().reshape(-1, count, self.d_model).clone()
            slots = (count,) * len(flat)
        question = {"questions": questions, "choices": choices}
        options = {"samples": samples, "sampling": sampling, "shape": shape, "kind": kind}
        options |= {"tokens": tokens, "positions": positions, "origin": origin, "claims": claims}
        options["layer"] = layer
        return self._captured(flat, {**options, "question": question, "slots": slots}, None)
