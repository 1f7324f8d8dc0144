"""Private and undocumented API of other libraries, all in one file.

A new release of one of them may break what is here, and nothing else. tests/test_compat.py has a
test for each entry, which says what broke and with which version it worked. Written for
nnsight 0.8.1, transformers 5.15 to 5.22, torch 2.13, accelerate 1.1 and datasets 3.

The first functions travel with a remote request as source: they import nothing.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

TRANSIENT = ("evicted", "Service temporarily unavailable", "Failed to send request")
"""What nnsight's `RemoteError` says of a failure that passes; the text is all that there is."""
NOT_COPIED = frozenset(
    ("forward", "_old_forward", "__nnsight__", "peft_config", "_hf_peft_config_loaded")
)
"""What nnsight, accelerate and PEFT put on a module, its own `forward` replaced."""


def module_of(model: Any) -> Any:
    """Return the PyTorch module of an nnsight model; anything else is returned as it is."""
    return getattr(model, "_module", model)


def interleaving(model: Any) -> bool:
    """Return whether a trace is running on an nnsight model."""
    return bool(getattr(getattr(model, "interleaver", None), "interleaving", False))


def has_edits(model: Any) -> bool:
    """Return whether an nnsight model has edits of the user's, which act in its own `generate`."""
    return bool(model._edits)


def tokenized(model: Any, prompt: Any) -> list[Any] | None:
    """Tokenize a prompt as an invoke of an nnsight model does; ``None`` if it is not a prompt."""
    from nnsight.modeling.processing import preprocess_invoke

    try:
        rows, _ = preprocess_invoke(model, prompt, {})
    except (TypeError, ValueError):  # Raised deep in transformers on what is not text.
        return None
    return rows


def drop_weights(model: Any) -> None:
    """Put a loaded nnsight model back to the state before it was dispatched; its envoys stay."""
    from nnsight.modeling.mixins.meta import MetaDevice

    with MetaDevice():
        module = model._load_meta(*model.args, **model.kwargs)
    replace_module(model, module)
    model.pipeline.model = module
    model.dispatched = False


def replace_module(model: Any, module: nn.Module) -> None:
    """Let the envoys of an nnsight model stand for another module of the same structure."""
    model._update(module)


def quantization(dtype: Any) -> Any:
    """Return nnsight's description of a quantized dtype, ``None`` for a torch dtype."""
    from nnsight.modeling.quantization import quantization as described

    return described(dtype)


def attach_adapter(module: nn.Module, adapter: str, *, weights: bool) -> None:
    """Attach a PEFT adapter to a module as nnsight does."""
    from nnsight.modeling import peft

    peft.attach(module, adapter, weights=weights)


def join_requests(reducers: Mapping[type, Callable[[Any], Any]]) -> None:
    """Tell the pickler of nnsight's remote requests, and no other, what our types become."""
    from nnsight.intervention.serialization import CustomCloudPickler

    table = CustomCloudPickler.dispatch_table
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
    """Return whether a tensor has a shape and no values (inside an nnsight `scan`)."""
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
    """Return whether PyTorch's CPU allocator raised `error`; its text is all that there is."""
    return isinstance(error, RuntimeError) and (
        "out of memory" in str(error) or "can't allocate memory" in str(error)
    )


def tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the buffers of one module, those that are ``None`` included."""
    return module._parameters, module._buffers


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of one module by name, those that are ``None`` included."""
    return module._modules


def is_stateful(module: nn.Module) -> bool:
    """Return whether a transformers model keeps a state that is not a cache of keys and values."""
    return bool(getattr(module, "_is_stateful", False))


def commit_hash(module: nn.Module) -> str | None:
    """Return the Hub commit that a transformers model was loaded from."""
    return getattr(getattr(module, "config", None), "_commit_hash", None)


def known_absent(repository: str, name: str) -> bool:
    """Return whether the local Hub cache has noted that a repository lacks a file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository, name) is _CACHED_NO_EXIST


def data_set_fingerprint(held: Any) -> str:
    """Return the fingerprint that `datasets` keeps of a data set that was saved to disk."""
    return held._fingerprint
