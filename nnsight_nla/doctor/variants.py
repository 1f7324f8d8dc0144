"""The other values that a setting of a checkpoint could have: the ones users have tripped over.

    value, others = variants("layer", declared, place)
    others[0].checkpoint.layer          # one block below the declared one

Only one setting differs from the declared checkpoint in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..checkpoint.checkpoint import AV_TEMPLATE, Checkpoint
from ..checkpoint.prompt import Prompt
from ..core.injection import Injection
from ..errors import CheckpointError

MARKERS = "㈎㈜㎡"
"""The markers of published checkpoints."""
SETTINGS = (
    "tokenizer", "template", "marker", "thinking block", "injection mode", "injection layer",
    "layer",
)  # fmt: skip


@dataclass(frozen=True)
class Try:
    """One way of running the verbalizer."""

    value: str
    """What is tried, in words."""
    checkpoint: Checkpoint
    """With this."""
    tokenizer: Any
    """And this."""


@dataclass(frozen=True)
class Place:
    """Where variants are tried."""

    tokenizer: Any
    """The target's."""
    layers: Sequence[int]
    """The target's blocks that were read."""
    norm: float
    """The mean L2 norm of the activations."""
    depth: int
    """How many blocks the verbalizer has."""
    ids: tuple[int, ...]
    """The prompt as declared."""
    remote: bool
    """Whether the verbalizer is on a host."""


def variants(name: str, declared: Try, place: Place) -> tuple[str, list[Try] | str]:
    """The declared value of a setting in words, and its other variants, or why there are none.

    Args:
        name: One of `SETTINGS`.
        declared: What the checkpoint says.
        place: Where the variants will be tried.
    """
    checkpoint, tokenizer = declared.checkpoint, declared.tokenizer
    injection = checkpoint.injection

    def changed(value: str, **fields: Any) -> Try:
        return Try(value, replace(checkpoint, **fields), tokenizer)

    loose: dict[str, Any] = {"left_id": None, "right_id": None}
    if name == "tokenizer":
        return _tokenizers(declared, place)
    if name == "template":
        if checkpoint.template == AV_TEMPLATE:
            return "the published one", "it is the published template"
        return "its own", [changed("the published one", template=AV_TEMPLATE, **loose)]
    if name == "marker":
        found = [
            changed(f"{char!r} ({ids[0]})", marker=char, marker_id=ids[0], **loose)
            for char in MARKERS
            if char != checkpoint.marker and len(ids := token_ids(tokenizer, char)) == 1
        ]
        shown = f"{checkpoint.marker!r} ({checkpoint.marker_id})"
        return shown, found or "no other published marker is one token here"
    if name == "thinking block":
        return _thinking(declared)
    if name == "injection mode":
        norm = float(f"{place.norm:.2g}")
        both = (
            Injection("add", "block", 1 if injection.layer is None else injection.layer),
            Injection("replace", "embedding", None, norm),
        )
        others = [each for each in both if each.operation != injection.operation]
        return _words(injection), [changed(_words(each), injection=each) for each in others]
    if name == "injection layer":
        depth = place.depth
        if injection.layer is None:
            return "the embedding", "the vector is written at the embedding"
        near = dict.fromkeys((1, injection.layer - 1, injection.layer + 1))
        found = [
            changed(f"block {each}", injection=replace(injection, layer=each))
            for each in near
            if 0 <= each < depth and each != injection.layer
        ]
        return f"block {injection.layer}", found
    around = sorted(set(place.layers) - {checkpoint.layer})
    return f"block {checkpoint.layer}", [changed(f"block {k}", layer=k) for k in around]


def _tokenizers(declared: Try, place: Place) -> tuple[str, list[Try] | str]:
    other, checkpoint = place.tokenizer, declared.checkpoint
    if place.remote:
        return "its own", "on a host the verbalizer keeps its own"
    ids = token_ids(other, checkpoint.marker)
    if len(ids) != 1:
        return "its own", f"{checkpoint.marker!r} is {len(ids)} tokens in the target's"
    fields = {"marker_id": ids[0], "left_id": None, "right_id": None}
    one = Try("the target's, with its chat template", replace(checkpoint, **fields), other)
    try:
        same = Prompt.render(one.checkpoint, other).ids == place.ids
    except CheckpointError as error:
        return "its own", f"the target's cannot render the prompt: {error}"
    return "its own", "the target's gives the same prompt" if same else [one]


def _thinking(declared: Try) -> tuple[str, list[Try] | str]:
    checkpoint, tokenizer = declared.checkpoint, declared.tokenizer
    words = {None: "as the template has it", True: "on", False: "off"}
    seen = {Prompt.render(checkpoint, tokenizer).ids}
    found: list[Try] = []
    for thinking in (None, True, False):
        other = replace(checkpoint, thinking=thinking)
        ids = Prompt.render(other, tokenizer).ids
        if ids not in seen:
            seen.add(ids)
            found.append(Try(words[thinking], other, tokenizer))
    shown = words[checkpoint.thinking]
    return shown, found or "the chat template has no thinking block"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text, with no special tokens added."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def _words(injection: Injection) -> str:
    where = "the embedding" if injection.layer is None else f"block {injection.layer}"
    scale = "" if injection.scale is None else f", scale {injection.scale:g}"
    return f"{injection.operation} at {where}{scale}"
