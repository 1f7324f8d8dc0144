"""What an experiment asks of a model, whether nnsight or TransformerLens runs it.

    host = host_of(model)           # a TransformersModel, or a TransformerBridge
    place, width = host.mlp(3), host.width
    host.forward(rows, [("read", place, "output", 0, width, where, positions, None)], None)

A *place* is whatever that kind of model reads and writes by: an envoy, or a hook point. Nothing but
the host that gave it looks inside. For the steps of a forward pass see `edits`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ..models import bridge
from ..models.hosts import Positions
from .bridge import Bridge
from .envoys import Envoys

if TYPE_CHECKING:
    from jaxtyping import Float, Int


class Host(Protocol):
    """A model that experiments run on."""

    @property
    def name(self) -> str:
        """What a person would know it by."""
        ...

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        ...

    @property
    def depth(self) -> int:
        """How many blocks it has."""
        ...

    @property
    def heads(self) -> int:
        """How many attention heads a block has."""
        ...

    @property
    def width(self) -> int:
        """The residual stream's width, d_model."""
        ...

    def positions(self, prompt: Any) -> Positions:
        """The ids and tokens of one prompt, as the model will read it."""
        ...

    def block(self, layer: int) -> Any:
        """The place of block `layer`'s output."""
        ...

    def attention(self, layer: int) -> Any:
        """The place of what the attention adds, where the architecture shows it."""
        ...

    def mlp(self, layer: int) -> Any:
        """The place of the MLP's output, where the architecture shows it."""
        ...

    def projection(self, layer: int) -> tuple[Any, int | None]:
        """The place of the heads' outputs side by side, and how wide it is."""
        ...

    def forward(
        self, rows: Int[Tensor, "rows seq"], steps: Sequence[Any], columns: list[int] | None
    ) -> tuple[list[Tensor], Float[Tensor, "rows columns"], Int[Tensor, " rows"]]:
        """One forward pass: what the ``"read"`` steps found, the answers, the predicted tokens."""
        ...


def host_of(model: Any, *, remote: bool = False) -> Host:
    """The host that runs `model`.

    Args:
        model: An nnsight model or a `TransformerBridge`.
        remote: Run the forwards on the configured NDIF host.

    Raises:
        NLAError: A bridge cannot run there.
        InjectionError: It is neither.
    """
    if bridge.is_bridge(model):
        bridge.check_here(remote=remote)
        return Bridge(model)
    return Envoys.of(model, remote=remote)
