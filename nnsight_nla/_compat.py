"""Wrap the private and undocumented API of other libraries.

A new release of one of them should break this file only. tests/test_compat.py has a test for each
entry, which names what broke and the version it worked with. Written for
nnsight 0.8.1, transformers 5.15 to 5.22, torch 2.13, accelerate 1.1 and datasets 3.

This module is shipped with remote requests as source, so it imports other libraries lazily.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

TRANSIENT = ("evicted", "Service temporarily unavailable", "Failed to send request")
"""Texts of nnsight's `RemoteError` for transient failures; it has no other sign of them."""
NOT_COPIED = frozenset(
    ("forward", "_old_forward", "__nnsight__", "peft_config", "_hf_peft_config_loaded")
)
"""Attributes that nnsight, accelerate and PEFT add to a module or replace on it."""


def module_of(model: Any) -> Any:
    """Return the PyTorch module of an nnsight model; anything else is returned as it is."""
    return getattr(model, "_module", model)


def interleaving(model: Any) -> bool:
    """Return whether a trace is running on an nnsight model."""
    return bool(getattr(getattr(model, "interleaver", None), "interleaving", False))


def has_edits(model: Any) -> bool:
    """Return whether an nnsight model has edits, which act in its own `generate`."""
    return bool(model._edits)


def tokenized(model: Any, prompt: Any) -> list[Any] | None:
    """Tokenize a prompt as an invoke of an nnsight model does; ``None`` if it is not a prompt."""
    from nnsight.modeling.processing import preprocess_invoke

    try:
        rows, _ = preprocess_invoke(model, prompt, {})
    except (TypeError, ValueError):  # Raised by transformers if it is not text.
        return None
    return rows


def drop_weights(model: Any) -> None:
    """Return a loaded nnsight model to its state before dispatch; its envoys stay."""
    from nnsight.modeling.mixins.meta import MetaDevice

    with MetaDevice():
        module = model._load_meta(*model.args, **model.kwargs)
    replace_module(model, module)
    model.pipeline.model = module
    model.dispatched = False


def replace_module(model: Any, module: nn.Module) -> None:
    """Point the envoys of an nnsight model at another module of the same structure."""
    model._update(module)


def quantization(dtype: Any) -> Any:
    """Return nnsight's description of a quantized dtype; ``None`` for a torch dtype."""
    from nnsight.modeling.quantization import quantization as described

    return described(dtype)


def attach_adapter(module: nn.Module, adapter: str, *, weights: bool) -> None:
    """Attach a PEFT adapter to a module as nnsight does."""
    from nnsight.modeling import peft

    peft.attach(module, adapter, weights=weights)


def generation_settings(**settings: Any) -> Any:
    """Return a `GenerationConfig` for ``generate`` that takes nothing from the model's own.

    transformers fills in every setting that the caller left open with what the checkpoint ships,
    unknown ones included, by calling `update` with these two arguments.
    """
    from transformers import GenerationConfig

    class Closed(GenerationConfig):
        def update(
            self, defaults_only: bool = False, allow_custom_entries: bool = False, **values: Any
        ) -> dict[str, Any]:
            if defaults_only and allow_custom_entries:
                return values
            return GenerationConfig.update(self, defaults_only, allow_custom_entries, **values)

    return Closed(**settings)


def join_requests(reducers: Mapping[type, Callable[[Any], Any]]) -> None:
    """Register reducers with the pickler of nnsight's remote requests only."""
    from nnsight.intervention.serialization import CustomCloudPickler

    table: Any = CustomCloudPickler.dispatch_table
    CustomCloudPickler.dispatch_table = ChainMap(dict(reducers), table)


def tracer_types() -> list[type]:
    """Return the classes of the tracers that a remote request pickles."""
    from nnsight.tracing.tracer import Tracer

    found: list[type] = [Tracer]
    for each in found:
        found += each.__subclasses__()
    return found


def remote_error() -> type[Exception]:
    """Return the error that nnsight raises for a failed remote request."""
    from nnsight.intervention.backends.remote import RemoteError

    return RemoteError


def host() -> str:
    """Return the address of the configured NDIF host."""
    from nnsight.schema.config import CONFIG

    return str(CONFIG.API.HOST)


def is_fake(tensor: Any) -> bool:
    """Return whether a tensor has a shape but no values (inside an nnsight `scan`)."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(tensor, FakeTensor)


def empty_copy(module: nn.Module) -> nn.Module:
    """Make a module of the same class, without tensors, children or hooks."""
    from torch import nn

    new = type(module).__new__(type(module))
    nn.Module.__init__(new)
    new._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
    return new


def says_out_of_memory(error: BaseException) -> bool:
    """Return whether PyTorch's CPU allocator raised `error`, judging by its text."""
    return isinstance(error, RuntimeError) and (
        "out of memory" in str(error) or "can't allocate memory" in str(error)
    )


def tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the buffers of one module, including ``None`` entries."""
    return module._parameters, module._buffers


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of one module by name, including ``None`` entries."""
    return module._modules


def is_stateful(module: nn.Module) -> bool:
    """Return whether a transformers model keeps state other than a cache of keys and values."""
    return bool(getattr(module, "_is_stateful", False))


def commit_hash(module: nn.Module) -> str | None:
    """Return the Hub commit that a transformers model was loaded from."""
    return getattr(getattr(module, "config", None), "_commit_hash", None)


def known_absent(repository: str, name: str) -> bool:
    """Return whether the local Hub cache records that a repository lacks a file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository, name) is _CACHED_NO_EXIST


def data_set_fingerprint(held: Any) -> str:
    """Return the fingerprint of a `datasets` data set that was saved to disk."""
    return held._fingerprint
