"""A TransformerLens `TransformerBridge` as the target, in TransformerLens' own ways of working.

A bridge's ``blocks.K.hook_out`` *is* the residual that an nnsight envoy gives: same weights, same
numbers. So the vectors are read where its users read them, in a cache or in a hook::

    bridge = TransformerBridge.boot_transformers("Qwen/Qwen3-8B")
    _, cache = bridge.run_with_cache(prompt)
    nla.explain(cache[nla.hook_name][0, -1])

    hook = nla.hook(bridge)                     # one that also knows the tokens and the padding
    bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks)
    hook.explanations[0][1].text                # forward pass 0, prompt 1

That holds for the weights as they were trained. Folded or centred ones (compatibility mode) give
another residual stream, which no verbalizer has seen; such a bridge is refused.

TransformerLens is never imported here: where a bridge was passed, it already has been.
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
    """Whether `model` is a `TransformerBridge`; costs no import."""
    lens = sys.modules.get("transformer_lens.model_bridge")
    return lens is not None and isinstance(model, lens.TransformerBridge)


def check_bridge(model: object) -> None:
    """Refuse what is not a bridge where a hook is asked for.

    Raises:
        InjectionError: `model` is not a `TransformerBridge`.
    """
    if not is_bridge(model):
        raise InjectionError(
            f"A hook is for a TransformerBridge, got {hosts.describe(cast('Any', model))}. In an "
            "nnsight trace: nla.explain(nla.layer(model).output[:, -1])."
        )


def describe(bridge: TransformerBridge) -> str:
    """The name a person would know `bridge` by."""
    return str(bridge.cfg.model_name)


def width(bridge: TransformerBridge) -> int:
    """The residual stream's width, d_model."""
    return int(bridge.cfg.d_model)


def block(bridge: TransformerBridge, layer: int) -> Any:
    """The hook point at the output of block `layer`.

    Raises:
        InjectionError: There is no such block, or the weights are not those that were trained.
    """
    check_weights(bridge)
    depth = int(bridge.cfg.n_layers)
    if not 0 <= layer < depth:
        raise InjectionError(
            f"{describe(bridge)} has blocks 0 to {depth - 1}, block {layer} was asked for. Use the "
            "model that the verbalizer was trained for."
        )
    return bridge.hook_dict[f"blocks.{layer}.hook_out"]


def check_weights(bridge: TransformerBridge) -> None:
    """Refuse a bridge whose weights were processed.

    Raises:
        InjectionError: They were folded or centred.
    """
    if getattr(bridge, "_weights_processed", False):
        raise InjectionError(
            f"The weights of this bridge of {describe(bridge)} were processed (compatibility mode "
            "folds layer norms and centres what writes to the residual stream), so its residuals "
            "are not those the verbalizer was trained on. Boot it again and leave the weights as "
            f"they are: {_BOOT}; for the old hook names alone, "
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
    """The tokens of each prompt, as `bridge` itself makes them (with BOS where it adds one).

    Args:
        bridge: Whose tokenizer and whose choice about BOS.
        prompts: A prompt or a list of them: strings, lists of token ids, lists of chat messages.

    Raises:
        InjectionError: One of them is something else.
    """
    several = [prompts] if isinstance(prompts, str) else list(prompts)
    return [span(bridge, _ids(bridge, prompt)) for prompt in several]


def span(bridge: TransformerBridge, ids: Sequence[int]) -> Positions:
    """Token ids, each with its text."""
    decode = bridge.tokenizer.decode
    return Positions(tuple(ids), tuple(decode([token]) for token in ids))


def residual(bridge: TransformerBridge, ids: Sequence[int], layer: int) -> Tensor:
    """The output of block `layer` at every token of one prompt, ``[seq, d_model]``.

    Args:
        bridge: The target.
        ids: Token ids, without padding.
        layer: Counted from 0; the blocks above it are not run.
    """
    point = block(bridge, layer)
    row = torch.tensor([list(ids)], device=bridge.cfg.device)
    with torch.no_grad():
        _, cache = bridge.run_with_cache(row, names_filter=point.name, stop_at_layer=layer + 1)
    return cache[point.name][0]


def continued(bridge: TransformerBridge, ids: Sequence[int], new_tokens: int) -> tuple[int, ...]:
    """`ids` and what the bridge goes on to write, greedily."""
    row = torch.tensor([list(ids)], device=bridge.cfg.device)
    options: dict[str, Any] = {"do_sample": False, "return_type": "tokens", "verbose": False}
    written = bridge.generate(row, max_new_tokens=new_tokens, **options)
    return tuple(int(token) for token in written[0])


class Hook:
    """A forward hook that explains what passes: for one prompt, a batch, or a generation.

    ``fwd_hooks`` goes to ``run_with_hooks`` or ``bridge.hooks``. It reads the token ids too, so
    padding is left out, whichever side it is on, and the explanations know their tokens. The model
    computes what it computes without it.
    """

    def __init__(
        self,
        explain: Callable[..., Any],
        bridge: TransformerBridge,
        layer: int,
        positions: Literal["last", "all"] = "last",
    ) -> None:
        """Made by ``nla.hook(bridge)``.

        Raises:
            InjectionError: The bridge cannot be read, or `positions` is something else.
        """
        if positions not in ("last", "all"):
            raise InjectionError(f"positions={positions!r}: expected 'last' or 'all'.")
        self.explanations: list[tuple[Any, ...]] = []
        """Per forward pass, a handle per prompt: of shape ``()``, or ``(tokens,)`` for "all"."""
        self._explain = explain
        self._bridge = bridge
        self._name = block(bridge, layer).name
        self._all = positions == "all"
        self._ids: Tensor | None = None
        self._seen: list[int] = []

    @property
    def fwd_hooks(self) -> list[tuple[str, Callable[..., None]]]:
        """What ``run_with_hooks(..., fwd_hooks=...)`` takes."""
        return [(IDS, self._note), (self._name, self)]

    def __call__(self, value: Tensor, hook: Any) -> None:
        """Capture the residuals of one forward pass; changes nothing.

        Args:
            value: ``[batch, seq, d_model]``, or ``[seq, d_model]`` with ``remove_batch_dim``.
            hook: The hook point.

        Raises:
            InjectionError: A batch came without its token ids, or the bridge's weights were
                processed in the meantime.
        """
        del hook
        check_weights(self._bridge)
        rows = value[None] if value.ndim == 2 else value
        ids, self._ids = self._ids, None
        if ids is None or ids.shape != rows.shape[:2]:
            if len(rows) > 1:
                raise InjectionError(
                    f"A batch of {len(rows)} prompts came without its token ids, so its padding "
                    "cannot be told from its words. Pass both hooks: fwd_hooks=hook.fwd_hooks."
                )
            picked = rows[0] if self._all else rows[0, -1]
            self.explanations.append((self._explain(picked),))
            return
        stepped = ids.shape[1] == 1 and len(self._seen) == len(ids)
        kept = [slice(0, 1)] * len(ids) if stepped else [self._real(row) for row in ids.tolist()]
        begun = self._seen if stepped else [0] * len(ids)
        self._seen = [
            before + part.stop - part.start for before, part in zip(begun, kept, strict=True)
        ]
        self.explanations.append(
            tuple(
                self._one(rows[row, part], ids[row, part].tolist(), begun[row])
                for row, part in enumerate(kept)
            )
        )

    def _one(self, vectors: Tensor, ids: list[int], before: int) -> Any:
        tokens = [self._bridge.tokenizer.decode([token]) for token in ids]
        places = list(range(before, before + len(ids)))
        if self._all:
            return self._explain(vectors, tokens=tokens, positions=places)
        return self._explain(vectors[-1], tokens=tokens[-1], positions=places[-1])

    def _note(self, value: Tensor, hook: Any) -> None:
        """Remember the ids of the pass that begins."""
        del hook
        if value.is_floating_point():  # Embeddings were passed, not ids.
            self._ids = None
        else:
            self._ids = value[None] if value.ndim == 1 else value

    def _real(self, ids: list[int]) -> slice:
        """Where a row's own tokens are: between the padding, which is on one side."""
        pad, start, stop = self._bridge.tokenizer.pad_token_id, 0, len(ids)
        while start < stop - 1 and ids[start] == pad:
            start += 1
        while stop - 1 > start and ids[stop - 1] == pad:
            stop -= 1
        bos = self._bridge.tokenizer.bos_token_id
        if start and bos == pad and self._bridge.cfg.default_prepend_bos:
            start -= 1  # The last of the run is no padding: it is the beginning.
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
        text = bridge.tokenizer.apply_chat_template(
            listed, tokenize=False, add_generation_prompt=listed[-1].get("role") != "assistant"
        )
        return bridge.tokenizer.encode(text, add_special_tokens=False)
    raise InjectionError(
        f"{str(prompt)[:60]!r} is not one prompt; pass a list of strings, of token id lists or of "
        "chat message lists."
    )
