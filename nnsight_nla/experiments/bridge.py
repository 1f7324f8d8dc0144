"""Experiments on a TransformerLens bridge: places are hook points, a forward runs with hooks.

A bridge's hook points stand where the envoys do, on the same modules, so a sweep's numbers and
texts are those of the nnsight path:

=========== ============================== ==========================================
site        hook point                     of what module
=========== ============================== ==========================================
residual    ``blocks.L.hook_out``          block L
attention   ``blocks.L.attn.o.hook_out``   the attention's last projection
mlp         ``blocks.L.mlp.hook_out``      the MLP
head        ``blocks.L.attn.o.hook_in``    that projection's input, ``[.., heads, head_dim]``
=========== ============================== ==========================================

Hooks that are on the bridge already stay there and act first.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InjectionError
from ..models import bridge
from .edits import answers, perform

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from ..models.hosts import Positions


@dataclass(frozen=True)
class Bridge:
    """A `TransformerBridge`; see `host.Host`."""

    model: TransformerBridge
    """The bridge."""

    @property
    def name(self) -> str:
        """What a person would know it by."""
        return bridge.describe(self.model)

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self.model.tokenizer

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        return int(self.model.cfg.n_layers)

    @property
    def heads(self) -> int:
        """How many attention heads a block has."""
        return int(self.model.cfg.n_heads)

    @property
    def width(self) -> int:
        """The residual stream's width, d_model."""
        return bridge.width(self.model)

    def positions(self, prompt: Any) -> Positions:
        """The ids and tokens of one prompt, as the bridge itself makes them."""
        return bridge.positions(self.model, [prompt])[0]

    def block(self, layer: int) -> Any:
        """The hook point at the output of block `layer`."""
        return bridge.block(self.model, layer)

    def attention(self, layer: int) -> Any:
        """The hook point at the output of the attention's last projection."""
        return self._point(layer, "attn.o.hook_out")

    def mlp(self, layer: int) -> Any:
        """The hook point at the MLP's output."""
        return self._point(layer, "mlp.hook_out")

    def projection(self, layer: int) -> tuple[Any, int | None]:
        """The hook point at the input of the attention's last projection, and its width."""
        return self._point(layer, "attn.o.hook_in"), self.heads * int(self.model.cfg.d_head)

    def forward(
        self, rows: Tensor, steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """One run with a hook at every point that the steps name.

        Raises:
            InjectionError: The forward pass did not come by one of them, or its weights were
                processed in the meantime.
        """
        bridge = self.model
        bridge.check_weights(bridge)
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
        if "logits_to_keep" in inspect.signature(bridge.original_model.forward).parameters:
            options["logits_to_keep"] = 1
        hooks = [(name, hook) for name in at]
        with torch.no_grad():
            device = bridge.cfg.device
            logits = bridge.run_with_hooks(rows.to(device), fwd_hooks=hooks, **options)[:, -1]
        if at:
            raise InjectionError(
                f"{self.name}: the forward pass did not come by {', '.join(at)}, so nothing was "
                'read or written there. site="residual" works everywhere.'
            )
        read = [found[number] for number in sorted(found)]
        return read, answers(logits, columns), logits.argmax(dim=-1)

    def _point(self, layer: int, name: str) -> Any:
        block = f"blocks.{layer}."
        point = self.model.hook_dict.get(block + name)
        if point is None:
            there = sorted(
                each.removeprefix(block) for each in self.model.hook_dict if each.startswith(block)
            )
            raise InjectionError(
                f"{self.name} has no hook point {block}{name}; block {layer} has "
                f'{", ".join(there)}. site="residual" works everywhere.'
            )
        return point


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
