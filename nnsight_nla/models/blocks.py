"""Find the blocks of a language model by structure, and view a block's output as the residual.

Some architectures' blocks return a tensor, others a tuple or a list whose first element is the
residual (GPT-J, Bloom, Falcon, RWKV, ...). `ResidualEnvoy` reads and writes the residual in each::

    layer = residual_envoy(model.transformer.h[3])
    layer.output[:, -1]         # always [batch, d_model]
    layer.output = edited       # what else the block returned stays

This module travels with a remote request as source, so it imports nothing from this package and
uses no decorators.
"""

from __future__ import annotations

from typing import Any

from nnsight import Envoy


def find_blocks(module: Any) -> tuple[str, Any]:
    """Return the path and the list of a language model's blocks.

    Blocks are a `ModuleList` of modules with children, as long as the configuration has layers. If
    there are several (towers for images or audio), it is the one next to the token embedding.

    Raises:
        LookupError: The model has no such list, or a block is spread over several lists.
    """
    depth = getattr(module.config.get_text_config(), "num_hidden_layers", None)
    name = type(module).__name__
    if depth is None:
        raise LookupError(f"the configuration of {name} has no num_hidden_layers")
    table = module.get_input_embeddings()
    named = list(module.named_modules())
    table_path = next((path.split(".") for path, each in named if each is table), [])
    found = []
    for path, each in named:
        is_list = type(each).__name__ == "ModuleList" and len(each) == depth
        if is_list and all(any(True for _ in block.children()) for block in each):
            names = path.split(".")
            same = [mine == other for mine, other in zip(names, table_path, strict=False)]
            shared = [*same, False].index(False)
            found.append((-shared, len(names), path, each))
    if not found:
        raise LookupError(f"no list of {depth} blocks in {name}")
    closest = min(entry[:2] for entry in found)
    near = [entry[2:] for entry in found if entry[:2] == closest]
    if len({path.rpartition(".")[0] for path, _ in near}) < len(near):
        lists = ", ".join(path for path, _ in near)
        raise LookupError(f"the blocks of {name} are spread over the lists {lists}")
    return near[0]


def residual_of(value: Any) -> Any:
    """Return the residual in a block's output: the output, or its first element."""
    return value[0] if isinstance(value, (tuple, list)) else value


def with_residual(value: Any, residual: Any) -> Any:
    """Return a block's output with another residual in it."""
    if isinstance(value, (tuple, list)):
        return type(value)([residual, *value[1:]])
    return residual


class ResidualEnvoy(Envoy):
    """A view of a block's envoy, whose ``output`` is the residual whatever the block returns."""

    def _read(self) -> Any:
        return residual_of(super(ResidualEnvoy, self).output)  # noqa: UP008  (Shipped as source.)

    def _write(self, residual: Any) -> None:
        served = super(ResidualEnvoy, self).output  # noqa: UP008
        if isinstance(served, (tuple, list)):
            residual = with_residual(served, residual)
        super(ResidualEnvoy, type(self)).output.__set__(self, residual)

    output: Any = property(_read, _write)  # pyright: ignore


def residual_envoy(envoy: Any) -> Any:
    """Return the view of a block's envoy that reads and writes the residual."""
    # The state is shared, so that the view follows when nnsight loads or replaces the module.
    kind = type(envoy)
    kind = ResidualEnvoy if kind is Envoy else type(kind.__name__, (ResidualEnvoy, kind), {})
    view = object.__new__(kind)
    view.__dict__ = envoy.__dict__
    return view
