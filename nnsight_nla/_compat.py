"""Wrap the private and undocumented API of other libraries.

A new release of one of them should break this file only. tests/test_compat.py has a test for each
entry, which names what broke and the version it worked with. Written for
nnsight 0.8.1, transformers 5.15 to 5.22, torch 2.13, accelerate 1.1 and datasets 3.

This module is shipped with remote requests as source, so it imports other libraries lazily.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from copy import deepcopy
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


def tokenized(model: Any, prompt: Any) -> list[Any]:
    """Tokenize a prompt as an invoke of an nnsight model does, and return its rows."""
    from nnsight.modeling.processing import preprocess_invoke

    return preprocess_invoke(model, prompt, {})[0]


def padding_side(model: Any) -> str:
    """Return the side that an nnsight model pads a batch of prompts on."""
    feature = model.feature_extractor or model.image_processor
    side = getattr(feature, "padding_side", None) or getattr(model.tokenizer, "padding_side", None)
    return side or "right"


def running_mask() -> Any:
    """Return the attention mask of the trace that runs this code, ``[rows, seq]``.

    ``None`` outside of a trace, in a batch of one row, and where the inputs are not text. The mask
    is made again from the inputs of the invokes, since nnsight does not keep the first one.
    """
    from nnsight.intervention.interleaver import Mediator
    from nnsight.modeling.processing import batch_forward

    try:
        batcher = Mediator.current("attention mask").interleaver.batcher
    except ValueError:
        return None
    if batcher is None or batcher.total < 2 or not hasattr(batcher.envoy, "pipeline"):
        return None
    if not hasattr(batcher, "nla_mask"):
        try:
            _, inputs = batch_forward(batcher.envoy, batcher.invokes)
        except (TypeError, ValueError, NotImplementedError):
            inputs = {}
        batcher.nla_mask = inputs.get("attention_mask")
    return batcher.nla_mask


def running_rows() -> tuple[int, int] | None:
    """Return the first row and the number of rows of the invoke that runs this code."""
    from nnsight.intervention.interleaver import Mediator

    try:
        mediator = Mediator.current("rows")
    except ValueError:
        return None
    batcher = mediator.interleaver.batcher
    if mediator.batch_group is None or batcher is None or not batcher.batching:
        return None
    return tuple(mediator.batch_group)


def forward_call(bridge: Any) -> dict[str, Any] | None:
    """Return the arguments of the running call of a `TransformerBridge`, from its frame.

    A hook sees token ids, and not which of them are padding; the call was given the prompts.

    Returns:
        ``input``, ``prepend_bos`` and ``padding_side`` of ``generate``, or else of ``forward``;
        ``None`` if neither is running.
    """
    import inspect
    import sys

    kind = type(bridge)
    codes = [inspect.unwrap(each).__code__ for each in (kind.forward, kind.generate)]
    found = None
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is bridge:
            names = ("input", "prepend_bos", "padding_side")
            found = {name: frame.f_locals.get(name) for name in names}
            found["generates"] = frame.f_code is codes[1]
        frame = frame.f_back
    return found


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


def watch_loading(keep: Callable[[Any, dict[str, Any]], None]) -> None:
    """Call ``keep(module, report)`` for every model that transformers loads, also by nnsight.

    The report is what ``from_pretrained(output_loading_info=True)`` returns, which nnsight does not
    pass on. Only the first call in a process has an effect.
    """
    from transformers import modeling_utils as loader

    modeling_utils: Any = loader
    real = modeling_utils.log_state_dict_report
    if hasattr(real, "nnsight_nla"):
        return

    def kept(*args: Any, **options: Any) -> Any:
        keep(options["model"], options["loading_info"].to_dict())
        return real(*args, **options)

    kept.nnsight_nla = True  # pyright: ignore[reportFunctionMemberAccess]
    modeling_utils.log_state_dict_report = kept


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

    # transformers warns if its default max_length of 20 and a max_new_tokens are both set.
    defaults = {**GenerationConfig._get_default_generation_params(), "max_length": None}
    config: Any = GenerationConfig(**{**defaults, **settings})
    # No class of our own: a host hands the settings from one process to another, without this
    # package. `dict` returns what it is called with and changes nothing, which is what is wanted.
    config.update = dict
    return config


def default_device() -> Any:
    """Return the device of a tensor that is made without one."""
    import torch

    # torch.get_default_device() of PyTorch 2.6 does not know of ``with torch.device(...)``.
    return torch.as_tensor(0).device


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


def without_values(*, symbolic: bool = False) -> ExitStack:
    """Enter a mode in which tensors have shapes and no values, whatever other mode is active.

    Args:
        symbolic: Also give sizes that depend on values a symbol, which is slower.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import _disable_current_modes

    shapes = None
    if symbolic:
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    entered = ExitStack()
    entered.enter_context(_disable_current_modes())
    entered.enter_context(FakeTensorMode(shape_env=shapes))
    return entered


def depends_on_values(error: BaseException) -> bool:
    """Return whether `error` says that an operation needs the values of a fake tensor."""
    from torch._subclasses import fake_tensor
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return isinstance(
        error,
        fake_tensor.DataDependentOutputException
        | fake_tensor.DynamicOutputShapeException
        | GuardOnDataDependentSymNode,
    )


def attention_of(config: Any) -> str | None:
    """Return the implementation of attention that was chosen for a transformers configuration."""
    return getattr(config, "_attn_implementation", None)


def skeleton(module: nn.Module) -> nn.Module | None:
    """Build a transformers model like `module`, without weights; call it in `without_values`.

    Returns:
        ``None`` if `module` is not one of transformers' models.
    """
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    module = getattr(module, "get_base_model", lambda: module)()
    if not isinstance(module, PreTrainedModel):
        return None
    config = deepcopy(module.config)
    # Other implementations have kernels, which need values.
    config._attn_implementation = "eager"
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "batched_mm"
    with no_init_weights():
        return type(module)(config).eval()


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


def can_pack() -> bool:
    """Return whether this PyTorch has oneDNN's products with packed weights."""
    import torch

    return (
        torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


def can_pack_bfloat16() -> bool:
    """Return whether oneDNN multiplies in bfloat16 on this processor."""
    import torch

    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def packed_product(weight: Any, bias: Any, rows: int) -> Callable[[Any], Any]:
    """Return the product of a linear layer with weights that oneDNN has packed.

    It is what ``torch.compile`` makes of the layer on a CPU.
    """
    import torch

    multiply = torch.ops.mkldnn._linear_pointwise
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), rows)
    return lambda states: multiply(states, packed, bias, "none", [], "")


def is_plain_lora(layer: nn.Module) -> bool:
    """Return whether a module is PEFT's linear layer with adapters that add to its output.

    Not one that is merged, switched off, training, a variant (DoRA, ...), or that has hooks in it.
    """
    import sys

    from torch import nn

    peft = sys.modules.get("peft.tuners.lora.layer")  # Without it there is no such layer.
    if peft is None or type(layer) is not peft.Linear:
        return False
    state: Any = layer
    inner = [each for each in layer.modules() if each is not layer]
    hooks = any(each._forward_hooks or each._forward_pre_hooks for each in inner)
    return (
        type(state.get_base_layer()) is nn.Linear
        and not (state.merged or state.disable_adapters or state.training or hooks)
        and not any(name in getattr(state, "lora_variant", ()) for name in state.active_adapters)
        and not any(state.lora_bias.get(name) for name in state.active_adapters)
        and _runs_forward_of(layer, peft.Linear)
    )


def runs_own_forward(layer: nn.Linear) -> bool:
    """Return whether a linear layer runs PyTorch's forward, through nnsight's entry point or not.

    accelerate's hooks and patches replace it.
    """
    from torch import nn

    return _runs_forward_of(layer, nn.Linear)


def _runs_forward_of(layer: nn.Module, kind: type[nn.Module]) -> bool:
    from nnsight.intervention.source import Controller

    forward = vars(layer).get("forward")
    if isinstance(forward, Controller) and "_hf_hook" not in vars(layer):
        return forward.state.original is kind.forward
    return forward is None


def tables(module: nn.Module) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the parameters and the buffers of one module, including ``None`` entries."""
    return module._parameters, module._buffers


def children(module: nn.Module) -> dict[str, nn.Module | None]:
    """Return the children of one module by name, including ``None`` entries."""
    return module._modules


def is_stateful(module: nn.Module) -> bool:
    """Return whether a transformers model keeps state other than keys and values."""
    return bool(getattr(module, "_is_stateful", False))


def takes_dynamic_cache(module: nn.Module) -> bool:
    """Return whether a transformers model takes a `DynamicCache`, and not only one of its own."""
    supports = getattr(module, "_supports_default_dynamic_cache", None)
    return supports is None or bool(supports())


def commit_hash(module: nn.Module) -> str | None:
    """Return the Hub commit that a transformers model was loaded from."""
    return commit_of(getattr(module, "config", None))


def commit_of(config: Any) -> str | None:
    """Return the Hub commit that a transformers configuration was loaded from."""
    return getattr(config, "_commit_hash", None)


@contextmanager
def template_clock(strftime: Callable[[str], str]) -> Generator[None, None, None]:
    """Let ``strftime_now`` of the chat templates that this thread renders call `strftime`.

    transformers 5.22 gives a template plain data only, so that a function cannot be passed to it.
    """
    import threading
    from types import SimpleNamespace

    from transformers.utils import chat_template_utils

    module: Any = chat_template_utils
    real, mine = module.datetime, threading.get_ident()
    clock = SimpleNamespace(strftime=strftime)
    module.datetime = SimpleNamespace(
        now=lambda: clock if threading.get_ident() == mine else real.now()
    )
    try:
        yield
    finally:
        module.datetime = real


def known_absent(repository: str, name: str) -> bool:
    """Return whether the local Hub cache records that a repository lacks a file."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    return try_to_load_from_cache(repository, name) is _CACHED_NO_EXIST


def data_set_fingerprint(held: Any) -> str:
    """Return the fingerprint of a `datasets` data set that was saved to disk."""
    return held._fingerprint


def safetensors_dtype(name: str) -> Any:
    """Return the dtype that a safetensors file calls `name`; ``None`` if torch has none."""
    from safetensors.torch import _TYPES

    return _TYPES.get(name)
