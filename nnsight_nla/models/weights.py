"""Load the weights of a model, and refuse a checkpoint that does not hold exactly these.

transformers loads a checkpoint whose keys do not match the model: weights that the file lacks are
initialized at random, and keys that the model lacks are ignored. It only logs a report, which the
command line silences. Here such a model is an error that names the keys, whoever loaded it::

    watch()                                # from now on, the report of every load is kept
    load(model, "verbalizer")              # loads, then checks
    check(model, "target")                 # checks a model that was loaded by the user
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import _compat
from ..core.locks import Lock
from ..errors import CheckpointError, NLAError
from . import hosts
from .attention import check_cap, with_cap
from .blocks import find_blocks
from .loading import config_of, from_pretrained, last_line

_SHOWN = 4
# Weights of a multimodal model that no text runs: a checkpoint may lack them, or have more of them.
_NOT_TEXT = re.compile(
    r"(^|[._])(vision|visual|audio|image|video|speech|mm|multi_modal|multimodal|projector)([._]|$)"
)
_WATCHING = Lock()
_REPORTS: weakref.WeakKeyDictionary[nn.Module, LoadReport] = weakref.WeakKeyDictionary()
_CURRENT: ContextVar[list[LoadReport] | None] = ContextVar("_CURRENT", default=None)


@dataclass(frozen=True)
class LoadReport:
    """How the keys of a checkpoint differ from those of the model it was loaded into."""

    missing: tuple[str, ...] = ()
    """Weights of the model that the checkpoint lacks; transformers initializes them at random."""
    unexpected: tuple[str, ...] = ()
    """Keys of the checkpoint that the model lacks."""
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    """Name, shape in the checkpoint and shape in the model, where these two differ."""

    @staticmethod
    def of(report: dict[str, Any]) -> LoadReport:
        """Convert what transformers calls ``output_loading_info``."""
        shapes = ((name, tuple(a), tuple(b)) for name, a, b in report["mismatched_keys"])
        return LoadReport(
            tuple(sorted(report["missing_keys"])),
            tuple(sorted(report["unexpected_keys"])),
            tuple(sorted(shapes)),
        )

    def without(self, unused: Callable[[str], bool]) -> LoadReport:
        """Return the report without the keys for which ``unused(key)`` is true."""
        return LoadReport(
            tuple(name for name in self.missing if not unused(name)),
            tuple(name for name in self.unexpected if not unused(name)),
            tuple(each for each in self.mismatched if not unused(each[0])),
        )

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        shapes = [f"{name} {file} instead of {model}" for name, file, model in self.mismatched]
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": shapes,
        }
        return "; ".join(
            f"{len(names)} {what} ({_listed(names)})" for what, names in found.items() if names
        )


def watch() -> None:
    """Keep the report of every model that transformers loads from now on in this process."""
    with _WATCHING.held():
        _compat.watch_loading(_keep)


def load(model: Any, role: str = "target", unused: Callable[[str], bool] | None = None) -> None:
    """Load the weights of an nnsight model, if they are not loaded, and check them.

    Args:
        model: The nnsight model.
        role: What errors call it.
        unused: Whether a weight of that name does not matter, because the model never runs it.

    Raises:
        CheckpointError: Weights are missing, unexpected or of another shape, or cannot be read. The
            model is left as it was, without weights.
    """
    watch()
    if getattr(model, "dispatched", True):
        check(model, role, unused)
        return
    seen: list[LoadReport] = []
    token = _CURRENT.set(seen)
    try:
        model.dispatch()
    except (NLAError, MemoryError, torch.OutOfMemoryError):
        raise
    except ImportError as error:
        raise _not_installed(model, error) from error
    except Exception as error:
        if _compat.says_out_of_memory(error):
            raise
        for report in seen:
            _refuse(report, hosts.describe(model), role, unused, error)
        raise CheckpointError(
            f"The weights of the {role} {hosts.describe(model)} could not be loaded: "
            f"{last_line(error)}"
        ) from error
    finally:
        _CURRENT.reset(token)
    try:
        check(model, role, unused)
    except CheckpointError:
        _compat.drop_weights(model)
        raise


def check(model: Any, role: str = "target", unused: Callable[[str], bool] | None = None) -> None:
    """Check that a loaded model got all of its weights from its checkpoint, and nothing else.

    A model that was loaded before `watch` was called, or was not loaded by transformers, passes.

    Raises:
        CheckpointError: Weights are missing, unexpected or of another shape.

    Warns:
        NLAWarning: Attention leaves out the soft cap of the configuration.
    """
    # A TransformerLens bridge wraps the module that transformers loaded; it caps scores itself.
    wrapped = getattr(model, "original_model", None)
    if wrapped is None:
        check_cap(model, stacklevel=4)
    report = _REPORTS.get(wrapped or hosts.module_of(model))
    if report:
        _refuse(report, hosts.describe(model), role, unused)


def load_module(auto: Any, source: str | Path, **options: Any) -> nn.Module:
    """Return ``auto.from_pretrained(source)``, a plain transformers model with all of its weights.

    Attention has the soft cap of the configuration, unless `options` choose an implementation.

    Raises:
        CheckpointError: Weights are missing, unexpected or of another shape.
        OSError: The files cannot be read (or a ValueError).
    """
    options = with_cap(config_of(source, options), options)
    module, report = from_pretrained(
        auto, source, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    _refuse(LoadReport.of(report), str(source), "model")
    check_cap(module, stacklevel=5)
    return module


def unused_above(model: Any, layer: int, *, final_norm: bool) -> Callable[[str], bool]:
    """Return a function from a weight's name to whether a reconstructor of `layer` never runs it.

    That is the output head, the final norm unless `final_norm`, and the blocks above `layer`.
    """
    module = hosts.module_of(model)
    try:
        parent, _, blocks = find_blocks(module)[0].rpartition(".")
    except LookupError:  # Reported when the block is looked up.
        return lambda _: False
    head = getattr(module, "get_output_embeddings", lambda: None)()
    skipped = [name for name, each in module.named_modules() if head is not None and each is head]
    if not final_norm:
        skipped += [f"{parent}.{name}" if parent else name for name in hosts.FINAL_NORMS]
    above = re.compile(rf"(?:^|\.){re.escape(blocks)}\.(\d+)\.")

    def unused(name: str) -> bool:
        found = above.search(name)
        return name.rpartition(".")[0] in skipped or (found is not None and int(found[1]) > layer)

    return unused


def _keep(module: nn.Module, report: dict[str, Any]) -> None:
    found = LoadReport.of(report)
    _REPORTS[module] = found
    current = _CURRENT.get()
    if current is not None:
        current.append(found)


def _refuse(
    report: LoadReport,
    name: str,
    role: str,
    unused: Callable[[str], bool] | None = None,
    cause: Exception | None = None,
) -> None:
    """Raise if a model differs from its checkpoint in something that it runs."""
    prefix = _prefix(report)
    report = report.without(lambda name: _NOT_TEXT.search(name) is not None)
    if unused is not None:
        report = report.without(unused)
    if not report:
        return
    if prefix:
        advice = (
            f"Every key of the file begins with {prefix!r}, which the model's do not. Rename them, "
            f"or pass key_mapping={{{'^' + re.escape(prefix)!r}: ''}}."
        )
    elif report.missing or report.mismatched:
        advice = (
            "What is missing would be random. Use the complete checkpoint, with the config.json "
            "that it was saved with."
        )
    else:
        advice = (
            "If they are not needed, save the model without them: "
            "AutoModelForCausalLM.from_pretrained(...).save_pretrained(folder)."
        )
    raise CheckpointError(
        f"The weights of the {role} {name} are not those of its config.json: {report}. {advice}"
    ) from cause


def _prefix(report: LoadReport) -> str:
    """Return what every key of the checkpoint has in front of the model's name; "" if nothing."""
    keys, first = set(report.unexpected), min(report.unexpected, default="")
    for name in report.missing:
        prefix = first.removesuffix(name) if first.endswith(name) else ""
        if prefix and keys <= {prefix + each for each in report.missing}:
            return prefix
    return ""


def _not_installed(model: Any, error: ImportError) -> CheckpointError:
    needs = "bitsandbytes" if "bitsandbytes" in str(error) else str(error.name or "it")
    return CheckpointError(
        f"{hosts.describe(model)} cannot be loaded as dtype={model.kwargs.get('dtype')!r}: "
        f"{str(error).strip().splitlines()[0]} Install what it needs (pip install {needs}), or "
        "load it in a torch dtype: NLA(..., dtype='bfloat16')."
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
