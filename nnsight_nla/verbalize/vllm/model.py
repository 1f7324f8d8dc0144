"""The model class that writes vectors: a subclass of any of vLLM's causal language models.

``NLAQwen3ForCausalLM`` is vLLM's ``Qwen3ForCausalLM`` with a `Writer` around its forward pass; the
class of every other architecture is made in the same way, when vLLM asks this module for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from .plugin import PREFIX
from .writer import Writer


def __getattr__(name: str) -> Any:
    if not name.startswith(PREFIX):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _writing(name)


@lru_cache
def _writing(name: str) -> type:
    """Return the subclass of the architecture in `name`; vLLM's processes find it by this name."""
    from vllm import ModelRegistry  # pyright: ignore

    base: Any = ModelRegistry.models[name.removeprefix(PREFIX)].load_model_cls()

    class Writing(base):
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            super().__init__(vllm_config=vllm_config, prefix=prefix)
            self.nla_writer = Writer(self, vllm_config, super().embed_input_ids)

        def embed_input_ids(self, input_ids: Any, *more: Any, **options: Any) -> Any:
            """Name the tokens that a request has generated; `forward` embeds all rows at once.

            vLLM calls this for the rows of a pass that are no prompt, and an adapter's embedding
            takes only all of them (it knows them by their place in the pass).
            """
            if more or options:
                return super().embed_input_ids(input_ids, *more, **options)
            return self.nla_writer.named(input_ids)

        def forward(
            self,
            input_ids: Any,
            positions: Any,
            intermediate_tensors: Any = None,
            inputs_embeds: Any = None,
            **more: Any,
        ) -> Any:
            if inputs_embeds is None:
                return super().forward(
                    input_ids, positions, intermediate_tensors, inputs_embeds, **more
                )
            embeds = self.nla_writer.begin(inputs_embeds, positions)
            out = super().forward(input_ids, positions, intermediate_tensors, embeds, **more)
            self.nla_writer.end()
            return out

    Writing.__name__ = Writing.__qualname__ = name
    Writing.__module__ = __name__
    return Writing
