"""Read the vectors of Arrow columns of any type that holds numbers: lists, tensors, views.

A vector is one axis of numbers. Axes of length 1 around it are dropped, and any other shape is left
for the caller to refuse.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_NUMBERS = (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type in which an extension type, such as a tensor, is stored."""
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def holds_vectors(kind: pa.DataType) -> bool:
    """Return whether a column of this type could hold vectors."""
    kind = stored_type(kind)
    if not any(test(kind) for test in _LISTS):
        return False
    inner = stored_type(kind.value_type)
    return any(test(inner) for test in _NUMBERS) or holds_vectors(inner)


def vector_of(cell: Any) -> Any:
    """Return the numbers of a cell as an array, without making a Python object of each.

    Args:
        cell: A scalar of Arrow, of a type that `holds_vectors` accepts.

    Returns:
        The array; ``None`` for a missing value; what the cell holds if it is no list of numbers.
    """
    if not cell.is_valid:
        return None
    if not holds_vectors(cell.type):
        return cell.as_py()
    array = _array(cell)
    return cell.as_py() if array is None else _squeezed(array)


def _array(cell: Any) -> np.ndarray | None:
    if isinstance(cell, pa.ExtensionScalar):
        shape = getattr(cell.type, "shape", None)
        flat = _array(cell.value)
        return flat if flat is None or not shape else flat.reshape(shape)
    values = cell.values
    if values is None:
        return None
    if any(test(stored_type(values.type)) for test in _LISTS):
        rows = [row for row in map(_array, values) if row is not None]
        even = len(rows) == len(values) and len({row.shape for row in rows}) == 1
        return np.stack(rows) if even else None
    if pa.types.is_decimal(values.type):
        values = values.cast(pa.float64())
    return values.to_numpy(zero_copy_only=False)


def _squeezed(array: np.ndarray) -> np.ndarray:
    if array.ndim < 2:
        return array
    kept = [length for length in array.shape if length != 1]
    return array.reshape(kept or [1])
