"""Check a remote block before it is sent, and refuse what cannot work on the server.

A request runs one model, and its block is shipped as source. The modules of a second model would
silently become those of the served model, and a text cannot be generated on the server.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from nnsight import Envoy

from ..errors import VerbalizationError
from ..explanation.protocols import ExplainsAndReconstructs
from ..models.adapter import weights_of
from . import wire

_NEEDS_TEXT = {
    "text", "samples", "snippets", "raw", "finish", "warnings", "errors", "receipt", "trust",
    "probabilities", "mass",
}  # fmt: skip
_MODELS = {"av", "ar"}
_ONE_MODEL = (
    "a remote request runs one model, and the modules of another would silently become those "
    "of the served model. Use two requests, and use the saved values of the first in the second."
)
_DEEPEST = 4


def check_block(tracer: Any, nlas: Iterable[ExplainsAndReconstructs]) -> None:
    """Refuse a block in which an NLA cannot work; ignore a block without an NLA.

    Args:
        tracer: The tracer that is about to be pickled into a request.
        nlas: All NLAs of this process.

    Raises:
        VerbalizationError: The block reads a text, uses a second model, or runs the verbalizer
            itself remotely.
    """
    if getattr(tracer, "node", None) is None or getattr(tracer.info, "frame", None) is None:
        return
    scope = {**tracer.info.frame.f_globals, **tracer.info.frame.f_locals}
    nodes = [node for part in tracer.node.body for node in ast.walk(part)]
    named = {node.id for node in nodes if isinstance(node, ast.Name)} & scope.keys()
    registered = {id(nla): nla for nla in nlas}
    ours = {name for name in named if id(scope[name]) in registered}
    models = {id(root): root for name in named for root in _roots(scope[name])}
    target = getattr(tracer, "envoy", None)
    if target is not None:
        models[id(target.root)] = target.root
    known = {id(model) for nla in registered.values() for model in _models(nla)}
    others = [key for key in models if target is None or key != id(target.root)]
    if not ours and known.isdisjoint(others):
        return
    handles = _handles(nodes, ours)
    for node in nodes:
        if not isinstance(node, ast.Attribute):
            continue
        root = _root(node.value)
        if node.attr in _NEEDS_TEXT and (root in handles or _is_explain(node.value, ours)):
            raise VerbalizationError(f"line {node.lineno}: .{node.attr}: {wire.LATER}")
        if node.attr in _MODELS and root in ours:
            raise VerbalizationError(f"line {node.lineno}: {root}.{node.attr}: {_ONE_MODEL}")
    if len(models) > 1:
        raise VerbalizationError(f"this block names {len(models)} models: {_ONE_MODEL}")
    for nla in (scope[name] for name in ours):
        here = weights_of(nla.av)
        if not nla.remote and any(
            model is nla.av or (model is here and not model.dispatched) for model in models.values()
        ):
            raise VerbalizationError(
                "the verbalizer is the model that this block runs remotely, so reading its text "
                "would load the weights here. Verbalize remotely too: NLA(model, remote=True), or "
                "NLA.on(model, av=..., remote=True) for an adapter."
            )


def _models(nla: ExplainsAndReconstructs) -> list[Any]:
    """Return the models of an NLA; an NLA restored from a pickle may have none."""
    if nla.runtime is None:
        return []
    return [nla.av, *([nla.ar] if nla.has_reconstructor else [])]


def _roots(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the models whose envoys a value holds, also in containers and in closures."""
    if isinstance(value, Envoy):
        yield value.root
    elif depth < _DEEPEST:
        inside: Iterable[Any] = ()
        if isinstance(value, dict):
            inside = value.values()
        elif isinstance(value, list | tuple | set | frozenset):
            inside = value
        elif isinstance(value, FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if _filled(cell)]
            inside = [*cells, *(value.__defaults__ or ())]
        for each in inside:
            yield from _roots(each, depth + 1)


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:  # The variable has no value yet.
        return False
    return True


def _handles(nodes: list[ast.AST], ours: set[str]) -> set[str]:
    """Return the names that the block binds to the result of an NLA's ``explain()``."""
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Assign) and _is_explain(node.value, ours):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def _is_explain(node: ast.AST, ours: set[str]) -> bool:
    """Return whether an expression is ``nla.explain(...)`` or ``ask``, or a part of it."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("explain", "ask")
        and _root(node.func.value) in ours
    )


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
