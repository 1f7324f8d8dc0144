"""List alternative values for a setting of a checkpoint: those that are often confused with it.

Each alternative differs from the declared checkpoint in one setting only::

    value, others = variants("layer", declared, context)
    others[0].checkpoint.layer          # one block below the declared one
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
"""The marker characters of published checkpoints."""
SETTINGS = (
    "tokenizer", "template", "marker", "thinking block", "injection mode", "injection layer",
    "layer",
)  # fmt: skip
"""The settings that are compared, in the order of the report."""


@dataclass(frozen=True)
class Candidate:
    """A checkpoint and a tokenizer to run the verbalizer with."""

    value: str
    """The value of the setting that is compared, in words."""
    checkpoint: Checkpoint
    """How the vector is injected and the prompt rendered."""
    tokenizer: Any
    """Renders the prompt and decodes the replies."""


@dataclass(frozen=True)
class Context:
    """What the alternatives depend on besides the declared checkpoint."""

    tokenizer: Any
    """The target's tokenizer."""
    layers: Sequence[int]
    """The target's blocks whose activations were read."""
    norm: float
    """The mean L2 norm of the activations."""
    depth: int
    """The number of the verbalizer's blocks."""
    ids: tuple[int, ...]
    """The token ids of the prompt as declared."""
    remote: bool
    """Whether the verbalizer runs on an NDIF host."""


def variants(name: str, declared: Candidate, context: Context) -> tuple[str, list[Candidate] | str]:
    """Return a setting's declared value in words, and its alternatives or why there are none.

    Args:
        name: One of `SETTINGS`.
        declared: The checkpoint as declared.
        context: What the alternatives depend on besides.
    """
    checkpoint, tokenizer = declared.checkpoint, declared.tokenizer
    injection = checkpoint.injection

    def changed(value: str, **fields: Any) -> Candidate:
        return Candidate(value, replace(checkpoint, **fields), tokenizer)

    loose: dict[str, Any] = {"left_id": None, "right_id": None}
    if name == "tokenizer":
        return _tokenizers(declared, context)
    if name == "template":
        if checkpoint.template == AV_TEMPLATE:
            return "the published one", "it already is the published template"
        return "its own", [changed("the published one", template=AV_TEMPLATE, **loose)]
    if name == "marker":
        found = [
            changed(f"{char!r} ({ids[0]})", marker=char, marker_id=ids[0], **loose)
            for char in MARKERS
            if char != checkpoint.marker and len(ids := token_ids(tokenizer, char)) == 1
        ]
        shown = f"{checkpoint.marker!r} ({checkpoint.marker_id})"
        return shown, found or "no other published marker is a single token here"
    if name == "thinking block":
        return _thinking(declared)
    if name == "injection mode":
        norm = float(f"{context.norm:.2g}")
        both = (
            Injection("add", "block", 1 if injection.layer is None else injection.layer),
            Injection("replace", "embedding", None, norm),
        )
        others = [each for each in both if each.operation != injection.operation]
        return _words(injection), [changed(_words(each), injection=each) for each in others]
    if name == "injection layer":
        if injection.layer is None:
            return "the embedding", "the vector is written at the embedding"
        near = dict.fromkeys((1, injection.layer - 1, injection.layer + 1))
        found = [
            changed(f"block {each}", injection=replace(injection, layer=each))
            for each in near
            if 0 <= each < context.depth and each != injection.layer
        ]
        return f"block {injection.layer}", found
    around = sorted(set(context.layers) - {checkpoint.layer})
    return f"block {checkpoint.layer}", [
        changed(f"block {k}", layer=k, layers=None) for k in around
    ]


def _tokenizers(declared: Candidate, context: Context) -> tuple[str, list[Candidate] | str]:
    other, checkpoint = context.tokenizer, declared.checkpoint
    if context.remote:
        return "its own", "a verbalizer on an NDIF host keeps its own tokenizer"
    ids = token_ids(other, str(checkpoint.marker))
    if len(ids) != 1:
        return "its own", f"{checkpoint.marker!r} is {len(ids)} tokens in the target's tokenizer"
    fields = {"marker_id": ids[0], "left_id": None, "right_id": None}
    one = Candidate("the target's, with its chat template", replace(checkpoint, **fields), other)
    try:
        same = Prompt.render(one.checkpoint, other).ids == context.ids
    except CheckpointError as error:
        return "its own", f"the target's tokenizer cannot render the prompt: {error}"
    return "its own", "the target's tokenizer gives the same prompt" if same else [one]


def _thinking(declared: Candidate) -> tuple[str, list[Candidate] | str]:
    checkpoint, tokenizer = declared.checkpoint, declared.tokenizer
    words = {None: "as the template has it", True: "on", False: "off"}
    seen = {Prompt.render(checkpoint, tokenizer).ids}
    found: list[Candidate] = []
    for thinking in (None, True, False):
        other = replace(checkpoint, thinking=thinking)
        ids = Prompt.render(other, tokenizer).ids
        if ids not in seen:
            seen.add(ids)
            found.append(Candidate(words[thinking], other, tokenizer))
    shown = words[checkpoint.thinking]
    return shown, found or "the chat template has no thinking block"


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the token ids of a text, without special tokens."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def _words(injection: Injection) -> str:
    where = "the embedding" if injection.layer is None else f"block {injection.layer}"
    scale = "" if injection.scale is None else f", scale {injection.scale:g}"
    return f"{injection.operation} at {where}{scale}"
