"""Values in the shape of a handle: one value, or nested lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Nested: TypeAlias = "T | list[Nested[T]]"
"""A value for the shape ``()``, otherwise lists nested as deep as the shape is long."""


def nested(values: Sequence[T], shape: tuple[int, ...]) -> Nested[T]:
    """Nest a flat list in `shape`; return its one value for the shape ``()``."""
    array = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        array[place] = value
    return array.reshape(shape).tolist()
