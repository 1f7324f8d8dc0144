"""Read the rows of matrices in ``.npy`` and ``.safetensors`` files, in blocks.

The files are not mapped into memory: a map of a file that is cut off while it is read would end the
process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import _compat
from ..checkpoint.origin import Origin
from ..errors import NLAError
from ..models.fingerprint import Unchanged, fingerprint_file
from .items import Source, vector_item


def npy(path: Path) -> Source:
    """Open a ``.npy`` file of ``[rows, d_model]``."""
    try:
        held = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise NLAError(f"{path} cannot be read as a .npy array of numbers: {error}") from error
    _check_matrix(path, list(held.shape))
    identity = fingerprint_file(path)
    rows, width = held.shape
    kind, offset = held.dtype, held.offset
    whole = None if held.flags.c_contiguous else np.load(path, allow_pickle=False)
    del held  # A map of a file that is cut off while it is read would end the process.

    def raw(start: int) -> Iterator[Any]:
        if whole is not None:
            return iter(whole[start:])
        decode = partial(np.frombuffer, dtype=kind)
        return _matrix_rows(path, offset, rows, width * kind.itemsize, start, decode)

    check = Unchanged(path, identity)
    return Source("vectors", identity, rows, raw, vector_item, Origin.next_to(path), check)


def _matrix_rows(
    path: Path, offset: int, rows: int, size: int, start: int, decode: Callable[[bytes], Any]
) -> Iterator[Any]:
    """Yield the rows of a matrix in a file, read in blocks.

    Args:
        path: The file.
        offset: Where the matrix begins, in bytes.
        rows: The number of its rows.
        size: The size of a row, in bytes.
        start: The number of the first row.
        decode: Turns the bytes of a row into an array.
    """
    with path.open("rb") as file:
        file.seek(offset + start * size)
        for begin in range(start, rows, 256):
            block = file.read(min(256, rows - begin) * size)
            for place in range(len(block) // size if size else 0):
                yield decode(block[place * size : (place + 1) * size])


def safetensors(path: Path, tensor: str | None) -> Source:
    """Open a tensor of ``[rows, d_model]`` of a ``.safetensors`` file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise NLAError(f"{path} cannot be read as safetensors: {error}") from error
    listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    flat = [name for name, shape in shapes.items() if len(shape) == 2]
    if tensor is None and len(flat) == 1:
        tensor = flat[0]
    if tensor not in shapes:
        raise NLAError(
            f"{path} holds {listed}: say which tensor holds the vectors, "
            f'open_source(..., tensor="NAME").'
        )
    rows, _ = _check_matrix(path, shapes[tensor])

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entry = json.loads(file.read(length))[tensor]
    kind = _compat.safetensors_dtype(entry["dtype"])
    if kind is None:
        raise NLAError(
            f"{path} holds {tensor} in {entry['dtype']}, expected floating-point numbers."
        )
    begin, end = entry["data_offsets"]

    def decode(block: bytes) -> Any:
        return torch.frombuffer(bytearray(block), dtype=kind).float().numpy()

    def raw(start: int) -> Iterator[Any]:
        size = (end - begin) // rows if rows else 0
        return _matrix_rows(path, 8 + length + begin, rows, size, start, decode)

    identity = {**fingerprint_file(path), "tensor": tensor}
    origin = Origin.next_to(path).joined(Origin.from_metadata(metadata, path.name))
    return Source("vectors", identity, rows, raw, vector_item, origin, Unchanged(path, identity))


def _check_matrix(path: Path, shape: list[int]) -> list[int]:
    if len(shape) != 2:
        raise NLAError(f"{path} holds an array of shape {shape}, expected [rows, d_model].")
    return shape
