"""Import a function that the command line names as ``module:function``."""

from __future__ import annotations

import importlib
import math
from typing import Any

from ..errors import NLAError


def import_function(name: str, option: str, *, otherwise: str = "") -> Any:
    """Return a function, from a module that can be imported from the working folder.

    Args:
        name: ``module:function``.
        option: The option that names it, for the message.
        otherwise: What else the option takes, for the message.

    Raises:
        NLAError: There is no such module or function.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise NLAError(
            f"{option} {name}: expected module:function of a module that can be imported from here "
            f"({error}){otherwise}."
        ) from error


def weighted(named: str, option: str) -> tuple[str, float]:
    """Split ``module:function=weight``; without a weight, it is 1.

    >>> weighted("mine:short=0.2", "--reward"), weighted("mine:short", "--reward")
    (('mine:short', 0.2), ('mine:short', 1.0))
    """
    name, equals, weight = named.partition("=")
    try:
        found = float(weight) if equals else 1.0
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise NLAError(f"{option} {named}: expected a number after =, such as {name}=0.5.")
    return name, found
