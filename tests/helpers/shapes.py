"""Checks jaxtyping's shapes at run time, in the tests only.

The package itself imports jaxtyping for its type checker and not at run time, so that importing
it stays cheap. Here the annotations of the modules of pure tensor maths and of the two model graphs
are resolved after all, and their functions wrapped. The facade is left out: what a bad input meets
there has to be its own error.
"""

import builtins
import importlib
import inspect
import sys
import typing
from typing import Any

import jaxtyping
from beartype import beartype

CHECKED = (
    "core.injection", "core.similarity", "evaluation.direction", "verbalize.verbalizer",
    "evaluation.reconstructor",
)  # fmt: skip


class _Names(dict):
    """The names an annotation may use: its module's, jaxtyping's, and anything else as ``Any``."""

    def __missing__(self, name: str) -> Any:
        return getattr(jaxtyping, name, getattr(builtins, name, Any))


def check_shapes() -> None:
    """Wrap every annotated function and method of `CHECKED`, wherever it was imported to."""
    for name in CHECKED:
        module = importlib.import_module(f"nnsight_nla.{name}")
        for attribute, value in list(vars(module).items()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if inspect.isfunction(value):
                _replace(value, attribute)
            elif inspect.isclass(value):
                for method, function in list(vars(value).items()):
                    if inspect.isfunction(function) and not method.startswith("__"):
                        setattr(value, method, _checked(function))


def _checked(function: Any) -> Any:
    names = _Names(vars(sys.modules[function.__module__]))
    function.__annotations__ = typing.get_type_hints(function, localns=names)
    return jaxtyping.jaxtyped(function, typechecker=beartype)


def _replace(function: Any, attribute: str) -> None:
    checked = _checked(function)
    for name, module in list(sys.modules.items()):
        if name.startswith("nnsight_nla") and vars(module).get(attribute) is function:
            setattr(module, attribute, checked)
