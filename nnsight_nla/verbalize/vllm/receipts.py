"""Keep what was written in vLLM's processes, until the client asks for it.

A vector is named by the hash of its row (`rows.keys`). The log of a process is a ring on the
device, which costs no synchronisation; it is read when a client asks, by vLLM's ``collective_rpc``
on the methods of `ReceiptWorker`::

    LLM(..., worker_extension_cls=EXTENSION)
    llm.collective_rpc("nla_receipts", args=([key, ...],))

A request whose marker came out of vLLM's prefix cache is not written anew, and is answered from
what was measured when it was. If that is forgotten, the client sends it again past the cache.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

Measured = tuple[int, float, float, float]
"""Position, norm before, norm after, and the cosine between the vector and what was written."""
_RING = 1 << 16
_REMEMBERED = 1 << 20


class Log:
    """What was written: a ring of the latest on the device, and a table of more on the CPU."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        # One more row than the ring has takes what is no marker.
        self._names = torch.zeros(_RING + 1, 2, dtype=torch.int64, device=device)
        self._values = torch.zeros(_RING + 1, 3, dtype=torch.float32, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._read = 0
        self._table: OrderedDict[int, dict[int, tuple[float, float, float]]] = OrderedDict()

    def append(self, keys: Tensor, positions: Tensor, real: Tensor, values: Tensor) -> None:
        """Append one entry for each marker.

        Args:
            keys: The hash of each vector.
            positions: The position of its marker.
            real: Which entries are markers.
            values: ``[rows, 3]``: norm before, norm after, cosine.
        """
        places = (self._count + real.cumsum(0) - 1) % _RING
        places = torch.where(real, places, torch.full_like(places, _RING))
        self._names[places] = torch.stack([keys, positions.long()], dim=-1)
        self._values[places] = values
        self._count += real.sum()

    def receipts(self, keys: list[int]) -> dict[int, list[Measured]]:
        """Return the measurements of each of these vectors, one for each of its markers."""
        self._drain()
        found = {key: self._table[key] for key in keys if key in self._table}
        return {key: [(at, *values) for at, values in each.items()] for key, each in found.items()}

    def _drain(self) -> None:
        count = int(self._count)
        places = [n % _RING for n in range(max(self._read, count - _RING), count)]
        self._read = count
        chosen = torch.tensor(places, dtype=torch.int64, device=self._names.device)
        values = self._values[chosen].tolist()
        for (key, position), value in zip(self._names[chosen].tolist(), values, strict=True):
            self._table.setdefault(key, {})[position] = tuple(value)
            self._table.move_to_end(key)
        while len(self._table) > _REMEMBERED:
            self._table.popitem(last=False)


class _OwnNames(type):
    # nnsight mounts names on `object`, and vLLM refuses an extension whose names a worker has.
    def __dir__(cls) -> list[str]:
        return list(vars(cls))


class ReceiptWorker(metaclass=_OwnNames):
    """What vLLM's workers can be asked for in addition."""

    def nla_receipts(self: Any, keys: list[int]) -> list[tuple[int, list[Measured]]]:
        """Return what this worker wrote for these vectors: pairs of a key and its measurements."""
        writer = getattr(self.get_model(), "nla_writer", None)
        return [] if writer is None else list(writer.receipts(keys).items())


EXTENSION = f"{__name__}.ReceiptWorker"
"""The value of vLLM's option ``worker_extension_cls``."""
METHOD = ReceiptWorker.nla_receipts.__name__
"""The method for ``collective_rpc``."""


def merged(answers: list[list[Any]]) -> dict[int, dict[int, tuple[float, float, float]]]:
    """Return key → position → measurements from the answers of all workers.

    >>> merged([[[7, [[2, 1.0, 2.0, 1.0]]]], []])
    {7: {2: (1.0, 2.0, 1.0)}}
    """
    found: dict[int, dict[int, tuple[float, float, float]]] = {}
    for answer in answers:
        for key, measured in answer:
            here = found.setdefault(int(key), {})
            here.update({int(at): (before, after, cos) for at, before, after, cos in measured})
    return found
