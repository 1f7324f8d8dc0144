"""Use a TransformerLens `TransformerBridge` as the target.

A bridge's ``blocks.K.hook_out`` is the residual that an nnsight envoy gives: same weights, same
numbers. So vectors can be read in the usual TransformerLens way, from a cache or in a hook::

    bridge = TransformerBridge.boot_transformers("Qwen/Qwen3-8B")
    _, cache = bridge.run_with_cache(prompt)
    nla.explain(cache[nla.hook_name][0, -1])

    hook = nla.hook(bridge)                     # also knows the tokens and the padding
    bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks)
    hook.explanations[0][1].text                # forward pass 0, prompt 1

This requires the weights as they were trained. Folded or centred weights (compatibility mode)
give a different residual stream, on which no verbalizer was trained; such a bridge is refused.

This module never imports TransformerLens: if a bridge was passed, it is already imported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from ..errors import InjectionError, NLAError
from . import hosts
from .hosts import Positions

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge
    from typing_extensions import TypeIs

IDS = "embed.hook_in"
"""The hook point whose value is the token ids of the pass."""
_BOOT = "TransformerBridge.boot_transformers(name)"


def is_bridge(model: object) -> TypeIs[TransformerBridge]:
    """Return whether `model` is a `TransformerBridge`, without an import."""
    lens = sys.modules.get("transformer_lens.model_bridge")
    return lens is not None and isinstance(model, lens.TransformerBridge)


def check_bridge(model: object) -> None:
    """Check that a hook is requested for a bridge.

    Raises:
        InjectionError: `model` is not a `TransformerBridge`.
    """
    if not is_bridge(model):
        raise InjectionError(
            f"A hook is for a TransformerBridge, got {hosts.describe(cast('Any', model))}. In an "
            "nnsight trace: nla.explain(nla.layer(model).output[:, -1])."
        )


def describe(bridge: TransformerBridge) -> str:
    """Return the name a person would know `bridge` by."""
    return str(bridge.cfg.model_name)


def width(bridge: TransformerBridge) -> int:
    """Return the width of the residual stream, d_model."""
    return int(bridge.cfg.d_model)


def config(bridge: TransformerBridge) -> Any:
    """Return the configuration of the model that `bridge` wraps, ``None`` if it has none."""
    return getattr(getattr(bridge, "original_model", None), "config", None)


def block(bridge: TransformerBridge, layer: int) -> Any:
    """Return the hook point at the output of block `layer`.

    Raises:
        InjectionError: There is no such block, or the weights were processed.
    """
    check_weights(bridge)
    depth = int(bridge.cfg.n_layers)
    if not 0 <= layer < depth:
        raise InjectionError(
            f"{describe(bridge)} has blocks 0 to {depth - 1}; block {layer} was requested. Use the "
            "model that the verbalizer was trained for."
        )
    return bridge.hook_dict[f"blocks.{layer}.hook_out"]


def check_weights(bridge: TransformerBridge) -> None:
    """Check that the weights of a bridge are those that were trained.

    Raises:
        InjectionError: The weights were folded or centred.
    """
    if getattr(bridge, "_weights_processed", False):
        raise InjectionError(
            f"The weights of this bridge of {describe(bridge)} were processed (compatibility mode "
            "folds layer norms and centres what writes to the residual stream), so its residuals "
            "differ from those that the verbalizer was trained on. Boot it again with unchanged "
            f"weights: {_BOOT}. If you only need the old hook names, use "
            "bridge.enable_compatibility_mode(no_processing=True)."
        )


def check_here(*, remote: bool) -> None:
    """Refuse to run a bridge on an NDIF host.

    Raises:
        NLAError: `remote` is true.
    """
    if remote:
        raise NLAError(
            "remote=True needs an nnsight model; a TransformerBridge runs on this machine. Leave "
            "remote out, or pass TransformersModel(name, task='text-generation')."
        )


def positions(bridge: TransformerBridge, prompts: str | Sequence[Any]) -> list[Positions]:
    """Return the tokens of each prompt, as `bridge` itself tokenizes it.

    Args:
        bridge: Provides the tokenizer, and decides whether BOS is added.
        prompts: A prompt or a list of them: strings, lists of token ids, lists of chat messages.

    Raises:
        InjectionError: One of them is not a prompt.
    """
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    return [span(bridge, _ids(bridge, prompt)) for prompt in several]


def span(bridge: TransformerBridge, ids: Sequence[int]) -> Positions:
    """Return token ids, each with its text."""
    decode = bridge.tokenizer.decode
    return Positions(tuple(ids), tuple(decode([token]) for token in ids))


def residual(bridge: TransformerBridge, ids: Sequence[int], layer: int) -> Tensor:
    """Return the output of block `layer` at every token of one prompt, ``[seq, d_model]``.

    Args:
        bridge: The target.
        ids: Token ids, without padding.
        layer: Counted from 0; later blocks are not run.
    """
    point = block(bridge, layer)
    row = torch.tensor([list(ids)], device=bridge.cfg.device)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(row, names_filter=point.name, stop_at_layer=layer + 1)
    return cache[point.name][0]


def continued(bridge: TransformerBridge, ids: Sequence[int], new_tokens: int) -> tuple[int, ...]:
    """Return `ids` followed by the bridge's greedy continuation."""
    row = torch.tensor([list(ids)], device=bridge.cfg.device)
    options: dict[str, Any] = {"do_sample": False, "return_type": "tokens", "verbose": False}
    written = bridge.generate(row, max_new_tokens=new_tokens, **options)
    return tuple(int(token) for token in written[0])


class Hook:
    """A forward hook that explains residuals: for one prompt, a batch, or a generation.

    Pass ``fwd_hooks`` to ``run_with_hooks`` or ``bridge.hooks``. The hook also reads the token ids,
    so it leaves out padding on either side, and the explanations know their tokens. The hook does
    not change what the model computes.
    """

    def __init__(
        self,
        explain: Callable[..., Any],
        bridge: TransformerBridge,
        layer: int,
        positions: Literal["last", "all"] = "last",
    ) -> None:
        """Create a hook; use ``nla.hook(bridge)``.

        Raises:
            InjectionError: The bridge cannot be read, or `positions` is unknown.
        """
        if positions not in ("last", "all"):
            raise InjectionError(f"positions={positions!r}: expected 'last' or 'all'.")
        self.explanations: list[tuple[Any, ...]] = []
        """For each forward pass, a handle per prompt: shape ``()``, or ``(tokens,)`` for "all"."""
        self._explain = explain
        self._bridge = bridge
        self._name = block(bridge, layer).name
        self._all = positions == "all"
        self._ids: Tensor | None = None
        self._seen: list[int] = []

    @property
    def fwd_hooks(self) -> list[tuple[str, Callable[..., Tensor | None]]]:
        """The value for ``run_with_hooks(..., fwd_hooks=...)``."""
        return [(IDS, self._note), (self._name, self)]

    def __call__(self, value: Tensor, hook: Any) -> Tensor | None:
        """Capture the residuals of one forward pass, unchanged.

        Args:
            value: ``[batch, seq, d_model]``, or ``[seq, d_model]`` with ``remove_batch_dim``.
            hook: The hook point.

        Returns:
            `value` itself with ``remove_batch_dim``, for which TransformerLens 3 needs a tensor.

        Raises:
            InjectionError: A batch came without its token ids, or the bridge's weights have
                been processed since.
        """
        del hook
        check_weights(self._bridge)
        rows = value[None] if value.ndim == 2 else value
        ids, self._ids = self._ids, None
        if ids is None or ids.shape != rows.shape[:2]:
            if len(rows) > 1:
                raise InjectionError(
                    f"A batch of {len(rows)} prompts came without its token ids, so its padding "
                    "cannot be found. Pass both hooks: fwd_hooks=hook.fwd_hooks."
                )
            picked = rows[0] if self._all else rows[0, -1]
            self.explanations.append((self._explain(picked),))
            return value if value.ndim == 2 else None
        stepped = ids.shape[1] == 1 and len(self._seen) == len(ids)
        kept = [slice(0, 1)] * len(ids) if stepped else [self._real(row) for row in ids.tolist()]
        starts = self._seen if stepped else [0] * len(ids)
        self._seen = [
            before + part.stop - part.start for before, part in zip(starts, kept, strict=True)
        ]
        self.explanations.append(
            tuple(
                self._one(rows[row, part], ids[row, part].tolist(), starts[row])
                for row, part in enumerate(kept)
            )
        )
        return None

    def _one(self, vectors: Tensor, ids: list[int], before: int) -> Any:
        tokens = [self._bridge.tokenizer.decode([token]) for token in ids]
        numbers = list(range(before, before + len(ids)))
        if self._all:
            return self._explain(vectors, tokens=tokens, positions=numbers)
        return self._explain(vectors[-1], tokens=tokens[-1], positions=numbers[-1])

    def _note(self, value: Tensor, hook: Any) -> None:
        """Remember the token ids of the forward pass that has just started."""
        del hook
        if value.is_floating_point():  # Embeddings were passed, not ids.
            self._ids = None
        else:
            self._ids = value[None] if value.ndim == 1 else value

    def _real(self, ids: list[int]) -> slice:
        """Return the slice of a row without its padding, which is on one side."""
        pad, start, stop = self._bridge.tokenizer.pad_token_id, 0, len(ids)
        while start < stop - 1 and ids[start] == pad:
            start += 1
        while stop - 1 > start and ids[stop - 1] == pad:
            stop -= 1
        bos = self._bridge.tokenizer.bos_token_id
        if start and bos == pad and self._bridge.cfg.default_prepend_bos:
            start -= 1  # The last of these tokens is BOS, not padding.
        return slice(start, stop)


def _ids(bridge: TransformerBridge, prompt: Any) -> list[int]:
    if isinstance(prompt, str):
        return [int(token) for token in bridge.to_tokens(prompt)[0]]
    if isinstance(prompt, torch.Tensor):
        prompt = prompt.flatten().tolist()
    listed = list(prompt) if isinstance(prompt, Sequence) else []
    if listed and all(isinstance(each, int) for each in listed):
        return listed
    if listed and all(isinstance(each, dict) for each in listed):
        ends = listed[-1].get("role") != "assistant"
        with hosts.rendering(describe(bridge)):
            text = bridge.tokenizer.apply_chat_template(
                listed, tokenize=False, add_generation_prompt=ends
            )
        return bridge.tokenizer.encode(text, add_special_tokens=False)
    raise InjectionError(
        f"{str(prompt)[:60]!r} is not one prompt; pass a list of strings, of token id lists or of "
        "chat message lists."
    )
