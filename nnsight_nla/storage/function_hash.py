"""Identify a function by what it does, so that a call that resumes notices an edited one.

The hash covers the bytecode, the constants, and what the function reads from outside: global
values, the functions, classes and modules of the user's own that it calls, defaults, and values
that it closes over. Comments, docstrings and the function's place in its file do not count, and
neither does the code of installed packages::

    fingerprint_function(ask)
    # {'name': 'mine:ask', 'python': '3.11', 'code': '5d…', 'uses': {'PROMPT': '81…'}}
"""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, type(None), type(...), torch.dtype, torch.device)
_INSTALLED = ("site-packages", "dist-packages")
_SAMPLE = 1024
_LOADS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT")
_STORES = ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR")


def fingerprint_function(function: Callable[..., Any], *, stateful: bool) -> dict[str, Any]:
    """Return a function's name and hashes of its code and of what it uses.

    Args:
        function: Any callable.
        stateful: Whether it may keep state, such as a count or a cache: then the lists,
            dictionaries and sets that it closes over or holds as attributes do not count, and
            neither do the variables that it assigns to.
    """
    reader = _Reader(stateful)
    code = _short(reader.describe(function, held=False))
    home = getattr(function, "__module__", "")
    name = getattr(function, "__qualname__", type(function).__qualname__)
    python = ".".join(map(str, sys.version_info[:2]))  # Other versions have other bytecode.
    uses = {name: reader.uses[name] for name in sorted(reader.uses)}
    return {"name": f"{home}:{name}", "python": python, "code": code, "uses": uses}


def hash_function(function: Callable[..., Any], *, stateful: bool) -> str:
    """Return all of `fingerprint_function` as one hash."""
    return _short(repr(fingerprint_function(function, stateful=stateful)))


class _Reader:
    """Describes values as text that is equal for equal content."""

    def __init__(self, stateful: bool) -> None:
        self.stateful = stateful
        self.uses: dict[str, str] = {}
        self._open: set[int] = set()
        self._known: dict[int, tuple[str, Any]] = {}

    def describe(self, value: Any, *, held: bool) -> str:
        """Describe a value; `held` says that a function keeps it between calls."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, Tensor):
            return _array(value)
        if isinstance(value, np.ndarray):
            return f"{value.dtype} {value.shape} {_short(value.tobytes())}"
        kind, key = type(value).__qualname__, id(value)
        if key in self._open:
            return kind
        if key not in self._known:
            self._open.add(key)
            said = f"{kind}({', '.join(self._parts(value, held=held))})"
            self._open.discard(key)
            self._known[key] = said, value  # The value is kept, and with it its id.
        return self._known[key][0]

    def _parts(self, value: Any, *, held: bool) -> Iterable[str]:
        each = functools.partial(self.describe, held=held)
        if isinstance(value, tuple):
            return map(each, value)
        if isinstance(value, frozenset):
            return sorted(map(each, value))
        if isinstance(value, list | dict | set | bytearray):
            if held and self.stateful:
                return ()
            if isinstance(value, dict):
                return (f"{each(name)}: {each(item)}" for name, item in value.items())
            return sorted(map(each, value)) if isinstance(value, set) else map(each, value)
        if isinstance(value, functools.partial):
            return map(each, (value.func, value.args, tuple(sorted(value.keywords.items()))))
        if isinstance(value, MethodType):
            return map(each, (value.__func__, value.__self__))
        if isinstance(value, CodeType):
            return self._code(value, value.co_consts)
        if isinstance(value, nn.Module):
            return (f"{name}: {_array(weight, _SAMPLE)}" for name, weight in _weights(value))
        if isinstance(value, ModuleType):
            return self._module(value)
        if hasattr(value, "__wrapped__"):
            return [each(value.__wrapped__)]
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(value)
        return self._object(value)

    def _function(self, function: FunctionType) -> Iterator[str]:
        if not _own(function.__module__):
            yield f"{function.__module__}.{function.__qualname__}"
            return
        code, doc = function.__code__, function.__doc__
        consts = [None if n == 0 and each == doc else each for n, each in enumerate(code.co_consts)]
        yield from self._code(code, consts)
        yield self.describe(function.__defaults__, held=True)
        yield self.describe(tuple((function.__kwdefaults__ or {}).items()), held=True)
        read, written = _names(code)
        if self.stateful:
            read -= written
        for name in sorted(read & set(function.__globals__)):
            self._use(name, function.__globals__[name], held=False)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name in read:
                with suppress(ValueError):  # Not assigned yet.
                    self._use(name, cell.cell_contents, held=True)

    def _use(self, name: str, value: Any, *, held: bool) -> None:
        described = self.describe(value, held=held)
        self.uses[name] = _short(self.uses.get(name, "") + described)

    def _code(self, code: CodeType, consts: Iterable[Any]) -> Iterator[str]:
        arguments = code.co_argcount + code.co_kwonlyargcount
        yield _short(code.co_code)
        yield repr((code.co_names, code.co_varnames[:arguments], code.co_freevars))
        for each in consts:
            yield self.describe(each, held=False)

    def _class(self, kind: type) -> Iterator[str]:
        yield f"{kind.__module__}.{kind.__qualname__}"
        own = [each for each in kind.__mro__ if _own(each.__module__)]
        for name, member in sorted(pair for each in own for pair in vars(each).items()):
            function = getattr(member, "__func__", getattr(member, "fget", member))
            if isinstance(function, FunctionType):
                yield f"{name}: {self.describe(function, held=False)}"
            elif not name.startswith("__"):
                yield f"{name}: {self.describe(member, held=True)}"

    def _object(self, value: Any) -> Iterator[str]:
        kind = type(value)
        yield self.describe(kind, held=False)
        if isinstance(value, BuiltinFunctionType):
            yield f"{value.__module__}.{value.__qualname__}"
            yield self.describe(value.__self__, held=True)
        elif kind.__module__ == "operator":
            yield repr(value)  # itemgetter(3) and the like.
        if not _own(kind.__module__):
            return
        functions = [each for each in vars(kind).values() if isinstance(each, FunctionType)]
        written = {
            name
            for each in functions
            if self.stateful and each.__name__ != "__init__"
            for name in _names(each.__code__)[1]
        }
        for name in sorted(set(getattr(value, "__dict__", ())) - written):
            self._use(f"{kind.__qualname__}.{name}", vars(value)[name], held=True)

    def _module(self, module: ModuleType) -> Iterator[str]:
        yield module.__name__
        get_code = getattr(getattr(module.__spec__, "loader", None), "get_code", None)
        code = None if get_code is None else get_code(module.__name__)
        if code is not None and _own(module.__name__):
            yield self.describe(code, held=False)


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """Return the names that code reads from outside, and those that it assigns to."""
    read: set[str] = set()
    written: set[str] = set()
    for each in dis.get_instructions(code):
        if each.opname.startswith(_LOADS):
            read.add(each.argval)
        elif each.opname.startswith(_STORES):
            written.add(each.argval)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            inner = _names(each)
            read, written = read | inner[0], written | inner[1]
    return read, written


def _own(name: str | None) -> bool:
    """Return whether a module is the user's: not built in, and not an installed package."""
    if name is None or name.partition(".")[0] == __name__.partition(".")[0]:
        return False
    file = getattr(sys.modules.get(name), "__file__", None)
    if file is None:
        return name == "__main__"
    path = Path(file).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"]).resolve()
    return not path.is_relative_to(standard) and not set(_INSTALLED) & set(path.parts)


def _weights(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _array(tensor: Tensor, most: int | None = None) -> str:
    """Describe a tensor by its content, or by `most` values of it."""
    values = tensor.detach().as_subclass(Tensor)
    said = f"{values.dtype} {tuple(values.shape)}"
    if values.device.type == "meta" or values.layout != torch.strided:
        return said
    flat = values.reshape(-1)
    if most is not None:
        flat = flat[:: max(1, len(flat) // most)]
    return f"{said} {_short(flat.cpu().contiguous().view(torch.uint8).numpy().tobytes())}"


def _short(content: str | bytes) -> str:
    content = content if isinstance(content, bytes) else content.encode(errors="surrogatepass")
    return hashlib.blake2b(content, digest_size=8).hexdigest()
