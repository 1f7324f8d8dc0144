"""Write vectors inside a forward pass of vLLM, and measure what was written.

A pass of vLLM has the tokens of many requests in one row after another, some in the middle of a
prompt, some decoding. `Writer.begin` finds the markers among the rows of embeddings, a forward hook
on the block writes the vectors there, and `Writer.end` appends the measurements to a log. All of it
is tensor operations of fixed shapes without a synchronisation, so torch.compile and CUDA graphs
hold.

vLLM's blocks return either the residual, or a pair (delta, residual) whose *sum* is the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...core.injection import OPERATIONS
from ...core.similarity import cosine
from ...errors import CheckpointError
from . import rows
from .receipts import Log
from .settings import FIELD, Settings


class Writer:
    """The markers of the running pass, and the log of what was written."""

    def __init__(
        self, model: nn.Module, vllm_config: Any, embed: Callable[[Tensor], Tensor]
    ) -> None:
        """Find the block and hook it.

        Args:
            model: One of vLLM's language models, just built.
            vllm_config: Its configuration, with the `Settings` in it.
            embed: The model's own embedding of tokens.

        Raises:
            CheckpointError: The model has no such block in this process.
        """
        config, scheduler = vllm_config.model_config, vllm_config.scheduler_config
        self.settings = Settings.read(getattr(config.hf_config, FIELD))
        self._embed, self._width, self._dtype = embed, config.get_hidden_size(), config.dtype
        slots, tokens = self.settings.slots, scheduler.max_num_batched_tokens
        device = torch.device(vllm_config.device_config.device)
        self._room = tokens if slots is None else min(scheduler.max_num_seqs * slots, tokens)
        layer = self.settings.injection.layer
        # Buffers of the module that uses them: so torch.compile sees them.
        self._home: Any = model if layer is None else _block(model, layer, config)
        for name, shape, dtype in (
            ("index", (self._room,), torch.int64),
            ("given", (self._room,), torch.bool),
            ("vectors", (self._room, self._width), self._dtype),
            ("measured", (self._room, 3), torch.float32),
        ):
            empty = torch.zeros(shape, dtype=dtype, device=device)
            self._home.register_buffer(f"nla_{name}", empty, persistent=False)
        self._log = Log(device)
        if layer is not None:
            self._home.register_forward_hook(self._at_block)

    def named(self, ids: Tensor) -> Tensor:
        """Return rows that name these tokens; see `rows`."""
        return rows.named(ids, self._width, self._dtype)

    def begin(self, embeds: Tensor, positions: Tensor) -> Tensor:
        """Take the vectors out of the rows of a pass.

        Args:
            embeds: ``[rows, d_model]``, as the requests have them; vLLM's own buffer, out of which
                markers are erased, so that none is found again in the padding of a later pass.
            positions: The position of each row in its request.

        Returns:
            The rows as the model reads them, in a new tensor.
        """
        kinds = rows.decoded(embeds)
        marked = kinds.vector | kinds.null
        # The markers' rows come first; what is left of the room repeats the first of them.
        picked = marked.int().topk(min(self._room, len(marked)))
        index = torch.where(picked.values.bool(), picked.indices, picked.indices[:1])
        more = self._room - len(index)
        index = torch.cat([index, index[:1].expand(more)])
        real = torch.cat([picked.values.bool(), torch.zeros_like(marked[:1]).expand(more)])
        home, sent = self._home, embeds[index]
        home.nla_index.copy_(index)
        home.nla_given.copy_(kinds.vector[index])
        home.nla_vectors.copy_(sent)
        places = positions if positions.dim() == 1 else positions[0]
        self._passing = (rows.keys(sent), places[index], real)
        read = self._embed(torch.where(marked, self.settings.marker_id, kinds.ids))
        read = torch.where((marked | kinds.token)[:, None], read.to(embeds.dtype), embeds)
        embeds.masked_fill_(marked[:, None], 0.0)
        if self.settings.injection.layer is None:
            read[index] = self._written(home, read[index])
        return read

    def end(self) -> None:
        """Append to the log what this pass wrote."""
        self._log.append(*self._passing, self._home.nla_measured)

    def receipts(self, keys: list[int]) -> dict[int, list[tuple[int, float, float, float]]]:
        """Return what was written for each vector; see `receipts.Log`."""
        return self._log.receipts(keys)

    def _at_block(self, module: Any, _: Any, output: Any) -> Any:
        index = module.nla_index
        if isinstance(output, Tensor):
            output[index] = self._written(module, output[index])
            return output
        pair = isinstance(output, tuple) and len(output) == 2
        if not pair or not all(isinstance(part, Tensor) for part in output):
            raise CheckpointError(
                f"A {type(module).__name__} of vLLM returns {type(output).__name__}; expected the "
                "residual, or (delta, residual). Use engine='fast'."
            )
        delta, residual = output
        before = delta[index] + residual[index]
        after, given = self._written(module, before), module.nla_given[:, None]
        delta[index] = torch.where(given, torch.zeros_like(after), delta[index])
        residual[index] = torch.where(given, after, residual[index])
        return delta, residual

    def _written(self, home: Any, before: Tensor) -> Tensor:
        """Return the markers' residuals after writing, and keep their norms and cosines."""
        injection, vectors, given = self.settings.injection, home.nla_vectors, home.nla_given
        new = OPERATIONS[injection.operation](before, vectors, injection.scale)
        after = torch.where(given[:, None], new, before)
        added = after if injection.operation == "replace" else after - before
        angle = torch.where(given, cosine(added, vectors), 0.0)
        lengths = before.float().norm(dim=-1), after.float().norm(dim=-1)
        home.nla_measured.copy_(torch.stack([*lengths, angle], dim=-1))
        return after


def _block(model: nn.Module, layer: int, config: Any) -> nn.Module:
    """Return a block.

    Raises:
        CheckpointError: There is no list of blocks, or it is in another process.
    """
    depth, name = config.hf_text_config.num_hidden_layers, type(model).__name__
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    blocks = next((each for each in lists if len(each) == depth), None)
    if blocks is None:
        raise CheckpointError(
            f"{name} of vLLM has no list of {depth} blocks, so no vector can be written into it. "
            "Use engine='fast'."
        )
    block = blocks[layer]
    if not any(True for _ in block.parameters()):
        raise CheckpointError(
            f"Block {layer} of {name} is in another process than its embedding, which has the "
            "vectors. Use a smaller pipeline_parallel_size, or tensor parallelism."
        )

    return block
