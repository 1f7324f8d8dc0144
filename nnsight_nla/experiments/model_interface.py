"""The two kinds of model that experiments run on: nnsight's, and a TransformerLens bridge.

    model = interface_of(model)         # a TransformersModel, or a TransformerBridge
    place, width = model.place("mlp", 3)
    model.forward(rows, [("read", place, "output", 0, width, where, positions, None)], None)

A *place* is the handle that such a model is read and written by: an envoy or a hook point. They lie
on the same modules, so a sweep has the same numbers and texts on both:

=========== ========================================= ==============================
site        module of an nnsight model                hook point of a bridge
=========== ========================================= ==============================
residual    block L                                   ``blocks.L.hook_out``
attention   the attention's last projection           ``blocks.L.attn.o.hook_out``
mlp         the MLP                                   ``blocks.L.mlp.hook_out``
head        the input of the attention's projection   ``blocks.L.attn.o.hook_in``
=========== ========================================= ==============================

Modules are found by structure, so one class serves Qwen, Llama, GPT-2 and models built like them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import nnsight
import torch
from torch import Tensor, nn

from ..errors import ExperimentError, InjectionError
from ..models import bridge, hosts, weights
from ..models import target as targets
from ..models.head import contiguous_head
from ..remote.ndif import send
from .edits import answers, perform

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from transformer_lens.model_bridge import TransformerBridge

# Shipped as source with a request: the host has none of ours.
nnsight.register("nnsight_nla.experiments.edits")

SiteName = Literal["residual", "attention", "mlp", "head"]
"""``site=``: where in a block is written."""

_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "o")
_MLPS = ("mlp", "feed_forward", "ffn")
_POINTS = {
    "residual": "hook_out",
    "attention": "attn.o.hook_out",
    "mlp": "mlp.hook_out",
    "head": "attn.o.hook_in",
}


class ModelInterface(Protocol):
    """What an experiment needs of a model."""

    name: str
    """The name a person would know it by."""
    tokenizer: Any
    """Its tokenizer."""
    depth: int
    """The number of blocks."""
    heads: int
    """The number of attention heads of a block."""
    width: int
    """The width of the residual stream, d_model."""

    def positions(self, prompt: Any) -> hosts.Positions:
        """Return the ids and tokens of one prompt, as the model will read it."""
        ...

    def place(self, site: SiteName, layer: int) -> tuple[Any, int | None]:
        """Return the envoy or hook point of a site, and its width where that is known.

        Raises:
            InjectionError: The model has no such block, or its blocks show no such site.
        """
        ...

    def forward(
        self, rows: Int[Tensor, "rows seq"], steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Float[Tensor, "rows columns"], Int[Tensor, " rows"]]:
        """Run one forward pass; for its steps see `edits`.

        Returns:
            What the ``"read"`` steps found, the answers, and the predicted tokens.
        """
        ...


def interface_of(model: Any, *, remote: bool = False) -> ModelInterface:
    """Wrap `model` for the experiments.

    Args:
        model: An nnsight model or a `TransformerBridge`.
        remote: Run the forward passes on the configured NDIF host.

    Raises:
        NLAError: A bridge cannot run there.
        InjectionError: It is neither.
    """
    if bridge.is_bridge(model):
        bridge.check_here(remote=remote)
        return BridgeInterface(model)
    if not isinstance(model, nnsight.TransformersModel):
        raise InjectionError(
            "The experiments run on an nnsight TransformersModel or a TransformerLens "
            f"TransformerBridge, got {type(model).__name__}. Write: "
            "TransformersModel(name, task='text-generation')."
        )
    return EnvoyInterface(model, remote=remote)


class EnvoyInterface:
    """An nnsight model: places are envoys, and a forward pass is a trace."""

    def __init__(self, model: nnsight.TransformersModel, *, remote: bool) -> None:
        """Wrap the model; with `remote` its traces run on the configured NDIF host."""
        config = hosts.text_config(model)
        self.name = hosts.describe(model)
        self.tokenizer: Any = model.tokenizer
        self.depth = int(config.num_hidden_layers)
        self.heads = int(getattr(config, "num_attention_heads", 0))
        self.width = hosts.width(model)
        self._model: Any = model
        self._remote = remote

    def positions(self, prompt: Any) -> hosts.Positions:
        """Return the ids and tokens of one prompt."""
        return _tokenized(self._model, prompt)

    def place(self, site: SiteName, layer: int) -> tuple[Any, int | None]:
        """Return the envoy of a site, and its width where that is known."""
        block = hosts.block(self._model, layer)
        if site == "residual":
            return block, self.width
        if site == "mlp":
            names = [name for name in _children(block) if name in _MLPS]
            if len(names) == 1:
                return getattr(block, names[0]), self.width
            raise self._missing(block, layer, "MLP")
        attention = [
            name
            for name, child in _children(block).items()
            if "attention" in type(child).__name__.lower() or "attn" in name
        ]
        if len(attention) == 1:
            # GPT-2 and OPT wrap nothing; GPT-Neo and BERT-like ones nest an inner attention.
            envoy = getattr(block, attention[0])
            names = [name for name in _children(envoy) if name in _PROJECTIONS]
            if len(names) == 1:
                envoy = getattr(envoy, names[0])
                return envoy, self.width if site == "attention" else _inputs(hosts.module_of(envoy))
        raise self._missing(block, layer, "attention with one output projection")

    def forward(
        self, rows: Tensor, steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Run one trace.

        Raises:
            HostError: The host stayed away, or the request failed there.
        """
        model, listed = self._model, list(steps)
        options: dict[str, Any] = {**hosts.only_last(model)}
        if not self._remote:
            weights.load(model)
            with contiguous_head(model):
                return _trace(model, rows, listed, columns, options)
        options["remote"] = True
        return send(
            lambda: _trace(model, rows, listed, columns, options),
            f"The request to run {len(rows)} rows of {self.name}",
        )

    def _missing(self, block: Any, layer: int, what: str) -> InjectionError:
        found = {name: type(child).__name__ for name, child in _children(block).items()}
        return InjectionError(
            f"{self.name}: no {what} found in block {layer}, which holds {found}. "
            'site="residual" works everywhere.'
        )


class BridgeInterface:
    """A `TransformerBridge`: places are hook points, and a forward pass runs with hooks.

    Hooks that are on the bridge already stay there and act first.
    """

    def __init__(self, model: TransformerBridge) -> None:
        """Wrap the bridge."""
        self.name = bridge.describe(model)
        self.tokenizer: Any = model.tokenizer
        self.depth = int(model.cfg.n_layers)
        self.heads = int(model.cfg.n_heads)
        self.width = bridge.width(model)
        self._model = model

    def positions(self, prompt: Any) -> hosts.Positions:
        """Return the ids and tokens of one prompt, the same as for an nnsight model."""
        return _tokenized(self._model, prompt)

    def place(self, site: SiteName, layer: int) -> tuple[Any, int | None]:
        """Return the hook point of a site, and its width."""
        if site == "residual":
            return bridge.block(self._model, layer), self.width
        points, block = self._model.hook_dict, f"blocks.{layer}."
        point = points.get(block + _POINTS[site])
        if point is None:
            found = sorted(name.removeprefix(block) for name in points if name.startswith(block))
            raise InjectionError(
                f"{self.name} has no hook point {block}{_POINTS[site]}; block {layer} has "
                f'{", ".join(found)}. site="residual" works everywhere.'
            )
        return point, self.heads * int(self._model.cfg.d_head) if site == "head" else self.width

    def forward(
        self, rows: Tensor, steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """Run the bridge with a hook at every point that the steps name.

        Raises:
            InjectionError: The forward pass did not come by one of them, or the weights were
                processed in the meantime.
        """
        model = self._model
        bridge.check_weights(model)
        at: dict[str, list[tuple[int, Any]]] = {}
        for number, step in enumerate(steps):
            at.setdefault(step[1].name, []).append((number, step))
        found: dict[int, Tensor] = {}

        def hook(value: Tensor, hook: Any) -> Tensor | None:
            # Heads may have an axis of their own; a step counts columns over all of them.
            passing = _Passing(value.reshape(*value.shape[:2], -1))
            for number, (action, _, _, *where) in at[hook.name]:
                read = perform([(action, passing, "output", *where)])
                found.update((number, each) for each in read)
            del at[hook.name]
            return passing.output.reshape(value.shape) if passing.written else None

        options: dict[str, Any] = {"return_type": "logits", "prepend_bos": False}
        options |= hosts.only_last(model.original_model)
        hooks: list[Any] = [(name, hook) for name in at]
        with torch.no_grad(), contiguous_head(model.original_model):
            device = model.cfg.device
            logits = model.run_with_hooks(rows.to(device), fwd_hooks=hooks, **options)[:, -1]
        if at:
            raise InjectionError(
                f"{self.name}: the forward pass did not come by {', '.join(at)}, so nothing was "
                'read or written there. site="residual" works everywhere.'
            )
        read = [found[number] for number in sorted(found)]
        return read, answers(logits, columns), logits.argmax(dim=-1)


class _Passing:
    """A value on its way through a hook point, as `edits` reads and writes an envoy's output."""

    def __init__(self, value: Tensor) -> None:
        self._value = value
        self.written = False

    @property
    def output(self) -> Tensor:
        return self._value

    @output.setter
    def output(self, value: Tensor) -> None:
        self._value, self.written = value, True


def _tokenized(model: Any, prompt: Any) -> hosts.Positions:
    """Return the ids and tokens of one prompt that `model` can run.

    Raises:
        ExperimentError: It has no tokens.
        InjectionError: It is not one prompt, or longer than the model can run.
    """
    advice = "An experiment takes one prompt; patch takes a clean and a corrupt one."
    found = targets.tokenized(model, prompt, advice=advice)
    if not found.ids:
        raise ExperimentError(
            f"The prompt {prompt!r} has no tokens, so there is no position to intervene at."
        )
    targets.check_length(model, len(found.ids), stacklevel=6)
    return found


def _trace(
    model: Any, rows: Tensor, steps: list[Any], columns: list[int] | None, options: dict[str, Any]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run the block; where it runs remotely, it is shipped as it is written here."""
    with torch.no_grad(), model.trace(rows, **options):
        values = nnsight.save(perform(steps))
        logits = model.output.logits[:, -1]
        last = nnsight.save(answers(logits, columns))
        top = logits.argmax(dim=-1).save()
    return list(values), last, top


def _children(envoy: Any) -> dict[str, nn.Module]:
    return dict(hosts.module_of(envoy).named_children())


def _inputs(module: nn.Module) -> int | None:
    """Return the width of a projection's input: a Linear's, or a GPT-2 Conv1D's."""
    width = getattr(module, "in_features", None) or getattr(module, "nx", None)
    return None if width is None else int(width)
