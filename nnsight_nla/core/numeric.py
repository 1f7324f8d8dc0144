"""Tell numbers and texts from values that only pass for them, such as ``True``, NaN and ``"7"``.

>>> is_int(7), is_int(True), is_int(7, least=8)
(True, False, False)
>>> is_real(7), is_real(float("nan"))
(True, False)
"""

from __future__ import annotations

import math
from typing import TypeGuard

import torch


def is_int(value: object, least: int | None = None) -> TypeGuard[int]:
    """Return whether `value` is an integer, of at least `least` if given; a bool is not one."""
    if not isinstance(value, int) or isinstance(value, bool):
        return False
    return least is None or value >= least


def is_real(value: object) -> TypeGuard[float]:
    """Return whether `value` is a finite integer or float; a bool is not one."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf


def is_unicode(text: str) -> bool:
    r"""Return whether `text` can be encoded: a lone surrogate cannot.

    >>> is_unicode("é"), is_unicode("\ud800")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_character(value: object) -> TypeGuard[str]:
    r"""Return whether `value` is a string of one character; half of a surrogate pair is not one.

    >>> is_character("㈎"), is_character("\ud800"), is_character("ab")
    (True, False, False)
    """
    return isinstance(value, str) and len(value) == 1 and is_unicode(value)


def has_values(value: object) -> bool:
    """Return whether the values of a tensor can be listed: it is dense and not on ``meta``.

    >>> has_values(torch.eye(2)), has_values(torch.eye(2).to_sparse()), has_values([1, 2])
    (True, False, True)
    """
    if not isinstance(value, torch.Tensor):
        return True
    return value.layout is torch.strided and value.device.type != "meta"
