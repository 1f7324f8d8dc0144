"""Experiments on an nnsight model: places are envoys, and a forward pass is a trace.

The places are found by structure, so one class serves Qwen, Llama, GPT-2 and what is built like
them. With ``remote`` the trace runs on the configured NDIF host.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import nnsight
import torch
from torch import Tensor, nn

from ..errors import InjectionError
from ..models import hosts
from ..remote.ndif import send
from .edits import answers, perform

if TYPE_CHECKING:
    from nnsight import TransformersModel

# Shipped as source with a request: the host has none of ours.
nnsight.register("nnsight_nla.experiments.edits")

_PROJECTIONS = ("o_proj", "out_proj", "c_proj", "dense", "wo", "o")
_MLPS = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class Envoys:
    """An nnsight model; see `host.Host`."""

    model: TransformersModel
    """The model."""
    remote: bool
    """Whether the forwards run on the configured NDIF host."""

    @staticmethod
    def of(model: Any, *, remote: bool) -> Envoys:
        """Check that `model` is an nnsight model.

        Raises:
            InjectionError: It is none.
        """
        from nnsight import TransformersModel

        if not isinstance(model, TransformersModel):
            raise InjectionError(
                "The experiments run on an nnsight TransformersModel or a TransformerLens "
                f"TransformerBridge, got {type(model).__name__}. Write: "
                "TransformersModel(name, task='text-generation')."
            )
        return Envoys(model, remote)

    @property
    def name(self) -> str:
        """What a person would know it by."""
        return hosts.describe(self.model)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.model.tokenizer

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return int(hosts.text_config(self.model).num_hidden_layers)

    @property
    def heads(self) -> int:
        """How many attention heads a block has."""
        return int(hosts.text_config(self.model).num_attention_heads)

    @property
    def width(self) -> int:
        """The residual stream's width, d_model."""
        return hosts.width(self.model)

    def positions(self, prompt: Any) -> hosts.Positions:
        """The ids and tokens of one prompt, as the model will read it."""
        return hosts.positions(self.model, [prompt])[0]

    def block(self, layer: int) -> Any:
        """The envoy of block `layer`."""
        return hosts.block(self.model, layer)

    def attention(self, layer: int) -> Any:
        """The envoy of the attention's last projection in block `layer`.

        Raises:
            InjectionError: There is not exactly one.
        """
        block = self.block(layer)
        attention = [
            name
            for name, child in block._module.named_children()
            if "attention" in type(child).__name__.lower() or "attn" in name
        ]
        if len(attention) == 1:
            # GPT-2 and OPT wrap nothing; GPT-Neo and BERT-like ones nest an inner attention.
            envoy = getattr(block, attention[0])
            names = [name for name, _ in envoy._module.named_children() if name in _PROJECTIONS]
            if len(names) == 1:
                return getattr(envoy, names[0])
        raise InjectionError(self._missing(layer, "attention with one output projection"))

    def mlp(self, layer: int) -> Any:
        """The envoy of the MLP of block `layer`.

        Raises:
            InjectionError: There is not exactly one.
        """
        block = self.block(layer)
        names = [name for name, _ in block._module.named_children() if name in _MLPS]
        if len(names) == 1:
            return getattr(block, names[0])
        raise InjectionError(self._missing(layer, "MLP"))

    def projection(self, layer: int) -> tuple[Any, int | None]:
        """The attention's last projection, whose input are the heads, and how wide that is."""
        envoy = self.attention(layer)
        return envoy, _columns(envoy._module)

    def forward(
        self, rows: Tensor, steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """One trace.

        Raises:
            HostError: The host stayed away, or the request failed there.
        """
        model, listed = self.model, list(steps)
        options: dict[str, Any] = {}
        if "logits_to_keep" in inspect.signature(model._module.forward).parameters:
            options["logits_to_keep"] = 1
        if not self.remote:
            return _trace(model, rows, listed, columns, options)
        options["remote"] = True
        return send(
            lambda: _trace(model, rows, listed, columns, options),
            f"The request to run {len(rows)} rows of {self.name}",
        )

    def _missing(self, layer: int, what: str) -> str:
        children = self.block(layer)._module.named_children()
        there = {name: type(child).__name__ for name, child in children}
        return (
            f"{self.name}: no {what} found in block {layer}, which holds {there}. "
            'site="residual" works everywhere.'
        )


def _trace(
    model: Any, rows: Tensor, steps: list[Any], columns: list[int] | None, options: dict[str, Any]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The block, shipped as it stands where it runs remotely."""
    with torch.no_grad(), model.trace(rows, **options):
        values = nnsight.save(perform(steps))
        logits = model.output.logits[:, -1]
        last = answers(logits, columns).save()
        top = logits.argmax(dim=-1).save()
    return list(values), last, top


def _columns(module: nn.Module) -> int | None:
    """The width of a projection's input: a Linear's, or a GPT-2 Conv1D's."""
    wide = getattr(module, "in_features", None) or getattr(module, "nx", None)
    return None if wide is None else int(wide)
