"""Use a TransformerLens `TransformerBridge` as the target.

A bridge's ``blocks.K.hook_out`` is the same residual that an nnsight envoy returns, from the same
weights. So you can read vectors in the usual TransformerLens way, from a cache or in a hook::

    bridge = TransformerBridge.boot_transformers("Qwen/Qwen3-8B")
    _, cache = bridge.run_with_cache(prompt)
    nla.explain(cache[nla.hook_name][0, -1])

    hook = nla.hook(bridge)                     # also knows the tokens and the padding
    bridge.run_with_hooks(prompts, fwd_hooks=hook.fwd_hooks)
    hook.explanations[0][1].text                # forward pass 0, prompt 1

A bridge pads on the right by default, and may prepend a BOS token that its tokenizer does not add.
``nla.positions(bridge, prompts)`` follows the bridge's defaults; if the call overrides them, pass
the same ``padding_side=`` and ``prepend_bos=``. `NLA.read` and the experiments tokenize a string as
its tokenizer does, like an nnsight model; this is also how verbalizers are trained.

The bridge must have the original weights. Folded or centred weights (compatibility mode) give a
different residual stream, on which no verbalizer was trained, so such a bridge is refused.

This module never imports TransformerLens: if you pass a bridge, it is already imported.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, cast

import torch

from .. import _compat
from ..errors import InjectionError, NLAError, NLAWarning, shown
from . import hosts
from .hosts import Positions
from .loading import from_pretrained
from .prompts import FLAT, checked, listed, rendering

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
    """Return the name of the model that `bridge` wraps."""
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
    """Check that a bridge has the original weights.

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


def positions(
    bridge: TransformerBridge,
    prompts: str | Sequence[Any],
    *,
    padding_side: hosts.Side | None = None,
    prepend_bos: bool | None = None,
) -> list[Positions]:
    """Return the real tokens of each prompt, as a call of `bridge` tokenizes and pads them.

    Args:
        bridge: Provides the tokenizer, and decides whether BOS is added.
        prompts: A prompt or a list of them: strings, lists of token ids, lists of chat messages.
        padding_side: As in the call; the tokenizer's unless given.
        prepend_bos: As in the call; ``bridge.cfg.default_prepend_bos`` unless given.

    Raises:
        InjectionError: One of them is not a prompt, or an option does not fit.

    Warns:
        NLAWarning: The bridge adds or removes a BOS, or cuts the prompt.
    """
    if prepend_bos is not None and not isinstance(prepend_bos, bool):
        raise InjectionError(f"prepend_bos={shown(prepend_bos)}: expected True, False or None.")
    side = hosts.checked_side(padding_side, bridge.tokenizer.padding_side or "right")
    found: list[Positions] = []
    for prompt in listed(prompts):
        given = checked(prompt, int(bridge.cfg.d_vocab))
        if isinstance(given, str):
            ids = [int(token) for token in bridge.to_tokens(given, prepend_bos=prepend_bos)[0]]
            whole = bridge.to_tokens(given, prepend_bos=prepend_bos, truncate=False).shape[1]
            if whole > len(ids):
                warnings.warn(
                    f"{describe(bridge)} cuts a prompt of {whole:,} tokens to the {len(ids):,} of "
                    "its context.",
                    NLAWarning,
                    stacklevel=4,
                )
            _check_bos(bridge, given, ids, stacklevel=5)
        else:
            ids = _ids(bridge, given)
        found.append(replace(hosts.spelled(bridge.tokenizer, ids), side=side))
    _check_mask(bridge, [each for each in found if each.ids], prepend_bos)
    return found


def tokenized(bridge: TransformerBridge, prompt: Any, *, advice: str = FLAT) -> Positions:
    """Return the tokens of one prompt as its tokenizer makes them, whatever the bridge adds.

    An nnsight model reads the same tokens. For the bridge's own, pass token ids:
    ``bridge.to_tokens(text)``.

    Raises:
        InjectionError: It is not one prompt, or the tokenizer refuses it.
    """
    given = checked(prompt, int(bridge.cfg.d_vocab), advice=advice)
    ids = _published(bridge, given) if isinstance(given, str) else _ids(bridge, given)
    return replace(hosts.spelled(bridge.tokenizer, ids), side="right")


def context(bridge: TransformerBridge) -> tuple[int | None, bool]:
    """Return the longest text that `bridge` was built for; see `hosts.context`."""
    return hosts.context(cast("Any", bridge.original_model))


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

    Pass ``fwd_hooks`` to ``run_with_hooks`` or ``bridge.hooks``. The hook also reads the token ids
    and the prompts of the running call, so it can leave out padding and label the explanations with
    their tokens. It does not change the computation of the model.
    """

    def __init__(
        self,
        explain: Callable[..., Any],
        bridge: TransformerBridge,
        layer: int,
        positions: Literal["last", "all"] = "last",
        at: Positions | Sequence[Positions] | None = None,
    ) -> None:
        """Create a hook; use ``nla.hook(bridge)``.

        Raises:
            InjectionError: The bridge cannot be read, or `positions` or `at` is something else.
        """
        if positions not in ("last", "all"):
            raise InjectionError(f"positions={shown(positions)}: expected 'last' or 'all'.")
        at = [at] if isinstance(at, Positions) else at
        if at is not None and not all(isinstance(each, Positions) for each in at):
            raise InjectionError(
                f"at={shown(at)}: expected nla.positions(bridge, prompts), a list."
            )
        self.explanations: list[tuple[Any, ...]] = []
        """For each forward pass, a handle per prompt: shape ``()``, or ``(tokens,)`` for "all"."""
        self._explain = explain
        self._bridge = bridge
        self._name = block(bridge, layer).name
        self._all = positions == "all"
        self._at: Sequence[Positions] | None = at
        self._ids: Tensor | None = None
        self._kept: list[slice] = []
        self._last: Tensor | None = None
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
        if ids.shape[1] == 1 and len(self._seen) == len(ids):  # A step with a cache.
            kept, starts = [slice(0, 1)] * len(ids), self._seen
        else:
            kept, starts = self._real(ids), [0] * len(ids)
            self._kept, self._last = kept, ids
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

    def _real(self, ids: Tensor) -> list[slice]:
        """Return the slice of each row without its padding.

        The padding is known from `at`, or from the prompts that the running call was given. A call
        that was given token ids says nothing of it: a single row has none, and in a batch it is
        read off the pad token, on the one side that has it.
        """
        rows, width = ids.shape
        call, last, at = _compat.forward_call(self._bridge) or {}, self._last, self._at
        grown = last is not None and last.shape == (rows, width - 1) and last.equal(ids[:, :-1])
        if grown and call.get("generates", True):
            return [slice(part.start, width) for part in self._kept]  # A step without a cache.
        if at is None:
            given: Any = call.get("input")
            several: list[Any] = given if isinstance(given, list) else [given]
            known = all(isinstance(each, str) for each in several) and len(several) == rows
            at = self._of_call(several, call) if known else []
        found = [slice(*part.slice.indices(width)[:2]) for part in at]
        tokens = [tuple(ids[row, part].tolist()) for row, part in enumerate(found[:rows])]
        if len(at) != rows or tokens != [part.ids for part in at]:
            if self._at is None:
                return self._unpadded(ids)
            raise InjectionError(
                f"The hook was given {len(at)} prompts with at=, and the call has {rows} rows of "
                "other tokens. Take both from the same call: nla.positions(bridge, prompts, "
                "padding_side=..., prepend_bos=...)."
            )
        return found

    def _of_call(self, prompts: list[str], call: dict[str, Any]) -> list[Positions]:
        """Return the positions of the prompts of the running call."""
        bridge = self._bridge
        cut = not call["generates"]
        side: Any = call["padding_side"] or bridge.tokenizer.padding_side
        if call["generates"] and len(prompts) > 1:
            side = "left"
        found = [
            bridge.to_tokens(prompt, prepend_bos=call["prepend_bos"], truncate=cut)[0].tolist()
            for prompt in prompts
        ]
        _check_bos(bridge, prompts[0], found[0], stacklevel=4)
        at = [replace(hosts.spelled(bridge.tokenizer, ids), side=side) for ids in found]
        _check_mask(bridge, at, call["prepend_bos"])
        return at

    def _unpadded(self, ids: Tensor) -> list[slice]:
        """Return the rows of a batch of token ids without their pad tokens.

        A pad token that is also the first or the last of a text is padding on one side only. The
        longest row has none, so what every row has of it there belongs to the text.

        Raises:
            InjectionError: Padding cannot be told from text.
        """
        tokenizer, width = self._bridge.tokenizer, ids.shape[1]
        pads = (ids == tokenizer.pad_token_id).long()
        before, after = (each.cumprod(dim=1).sum(dim=1).tolist() for each in (pads, pads.flip(1)))
        if tokenizer.pad_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            starts = [min(start, width - 1) for start in before]  # One token is always left.
            return [
                slice(start, max(start + 1, width - end))
                for start, end in zip(starts, after, strict=True)
            ]
        if len(ids) == 1:
            return [slice(0, width)]
        before = [start - min(before) for start in before]
        if min(after) or (any(before) and any(after)):
            raise InjectionError(
                f"{tokenizer.pad_token!r} is both padding and a token of these texts: it is at "
                "both ends of the token ids, or at the end of every row. Pass the prompts "
                "themselves to the call, or say where they are: nla.hook(bridge, "
                "at=nla.positions(bridge, prompts))."
            )
        return [slice(*each) for each in zip(before, [width - end for end in after], strict=True)]


def _ids(bridge: TransformerBridge, prompt: list[int] | list[dict[str, Any]]) -> list[int]:
    """Return token ids as they are, and chat messages as an nnsight model tokenizes them."""
    if not prompt or not isinstance(prompt[0], dict):
        return cast("list[int]", prompt)
    messages = cast("list[dict[str, Any]]", prompt)
    unfinished = messages[-1]["role"] == "assistant"
    with rendering(messages, describe(bridge)):
        return bridge.tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not unfinished,
            continue_final_message=unfinished,
            return_dict=True,
            **_own_bos(bridge.tokenizer),
        )["input_ids"]


def _own_bos(tokenizer: Any) -> dict[str, None]:
    """Return what a template is told of the BOS, where TransformerLens made one of the EOS."""
    own = tokenizer.init_kwargs.get("bos_token")
    made_up = own is None and tokenizer.bos_token == tokenizer.eos_token
    return {"bos_token": None} if made_up else {}


def _published(bridge: TransformerBridge, text: str) -> list[int]:
    """Return the tokens of a text as the published tokenizer makes them.

    TransformerLens makes a tokenizer add a BOS, if it can.
    """
    with rendering(text, describe(bridge)):
        ids: list[int] = bridge.tokenizer(text)["input_ids"]
    bos = bridge.tokenizer.bos_token_id
    if bridge.cfg.tokenizer_prepends_bos and not _adds_bos(bridge) and ids[:1] == [bos]:
        return ids[1:]
    return ids


def _check_mask(
    bridge: TransformerBridge, places: Sequence[Positions], prepend_bos: bool | None
) -> None:
    """Refuse a batch whose padding TransformerLens does not mask as it should.

    Where the pad token is also the BOS, the mask of a left-padded batch goes by
    ``cfg.default_prepend_bos`` even if the call says otherwise.

    Raises:
        InjectionError: The call of this batch masks a BOS, or attends to padding.
    """
    tokenizer, default = bridge.tokenizer, bool(bridge.cfg.default_prepend_bos)
    if prepend_bos in (None, default) or tokenizer.pad_token_id != tokenizer.bos_token_id:
        return
    if len(places) < 2 or places[0].side == "right":
        return
    if prepend_bos or len({len(each.ids) for each in places}) > 1:
        wrong = "masks the BOS" if prepend_bos else "attends to one pad token"
        raise InjectionError(
            f"With prepend_bos={prepend_bos} in the call and a pad token that is also the BOS, "
            f"TransformerLens {wrong} of a left-padded batch. Set bridge.cfg.default_prepend_bos = "
            f"{prepend_bos} and leave prepend_bos= out of the call, or pad on the right."
        )


_ADDS_BOS: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def _adds_bos(bridge: TransformerBridge) -> bool:
    """Return whether the tokenizer adds a BOS where TransformerLens did not change it."""
    if not bridge.cfg.tokenizer_prepends_bos:
        return False
    if bridge not in _ADDS_BOS:
        from transformers import AutoTokenizer

        given = bridge.tokenizer
        try:
            # Where TransformerLens changed it, it was loaded from here a moment ago.
            plain = from_pretrained(AutoTokenizer, given.name_or_path, local_files_only=True)
            _ADDS_BOS[bridge] = plain("a")["input_ids"][:1] == [given.bos_token_id]
        except (OSError, ValueError, NLAError):  # It was built by hand, and is as it was given.
            _ADDS_BOS[bridge] = True
    return _ADDS_BOS[bridge]


def _check_bos(
    bridge: TransformerBridge, text: str, ids: Sequence[int], *, stacklevel: int = 3
) -> None:
    """Warn if a call of the bridge has another beginning than the tokenizer makes."""
    bos = bridge.tokenizer.bos_token_id
    has, should = (list(each[:1]) == [bos] for each in (ids, _published(bridge, text)))
    if has == should:
        return
    token = bridge.tokenizer.decode([bos])
    said = "puts {} before" if has else "takes {} from"
    warnings.warn(
        f"{describe(bridge)}: the bridge {said.format(repr(token))} the prompt, which its "
        f"tokenizer {'does not' if has else 'adds'}; a verbalizer is trained on the tokenizer's "
        f"own tokens, so its texts here are less certain. Pass prepend_bos={should} to the call "
        f"and to nla.positions, or set bridge.cfg.default_prepend_bos = {should}.",
        NLAWarning,
        stacklevel=stacklevel,
    )
