"""Render the verbalizer's fixed prompt and find the marker in it.

The prompt is the same for every vector; only the residual at the marker differs. It is rendered in
two steps (chat template to text, text to ids), because one-step tokenization has split markers, and
a second BOS token would shift every position by one. The marker is found by its id *and* both
neighbours, so the same character elsewhere in the text is not a site. A template may have several
slots, which all get the vector. Adjacent markers are one run between two neighbours::

    prompt = Prompt.render(checkpoint, tokenizer)
    prompt.ids[prompt.marker_position] == checkpoint.marker_id
    prompt.sites                                    # all positions that are written
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from ..core.numeric import is_unicode
from ..core.time_limit import TEMPLATE_SECONDS, time_limit
from ..errors import CheckpointError
from .checkpoint import DEPTH_SLOT, LAYER_SLOT, MARKER_SLOT, Checkpoint
from .dates import Clock
from .reply import OPEN, opened

_LAYER_SLOTS = {
    LAYER_SLOT: "the number of the layer",
    DEPTH_SLOT: "the depth of the layer in percent of the target's blocks",
}


@dataclass(frozen=True)
class Prompt:
    """The rendered prompt of a verbalizer."""

    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    marker_position: int
    """The position that the vector is written at, from 0; the first one of several."""
    text: str
    """The prompt as text."""
    left_id: int | None
    """The id of the token before the marker; ``None`` if several slots differ in it."""
    right_id: int | None
    """The id of the token after the marker; ``None`` if several slots differ in it."""
    more_positions: tuple[int, ...] = ()
    """The other positions that the vector is written at, for a template with several slots."""
    opened: str = ""
    """The beginning of the explanation that the prompt already has: its opening tag, or more."""
    date: str | None = None
    """The date (or moment) that the chat template printed, in ISO 8601; ``None`` if it prints none.
    """

    @property
    def sites(self) -> tuple[int, ...]:
        """All positions that the vector is written at, in ascending order."""
        return (self.marker_position, *self.more_positions)

    @property
    def hash(self) -> str:
        """The SHA-256 of the token ids, in hex."""
        return hashlib.sha256(" ".join(map(str, self.ids)).encode()).hexdigest()

    @staticmethod
    def render(checkpoint: Checkpoint, tokenizer: Any) -> Prompt:
        """Render the template of `checkpoint` with the live tokenizer and find the marker.

        Args:
            checkpoint: Has the template, the marker and its neighbours, and the date for a chat
                template that prints one (by default: now).
            tokenizer: A transformers tokenizer with a chat template.

        Raises:
            CheckpointError: The tokenizer splits the marker or gives it another id, or the number
                of markers between the right neighbours is not the number of slots.
        """
        marker, marker_id = marker_of(checkpoint, tokenizer)
        checkpoint = replace(checkpoint, marker=marker, marker_id=marker_id)
        content = checkpoint.template.replace(MARKER_SLOT, marker)
        check_filled(checkpoint, content)
        clock = Clock(checkpoint.date)
        text = rendered(content, checkpoint, tokenizer, clock)
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        runs = _runs(ids, checkpoint)
        sites = [position for run in runs for position in run]
        slots = checkpoint.template.count(MARKER_SLOT)
        if len(sites) != slots:
            raise CheckpointError(_miscounted(ids, checkpoint, len(sites), slots))
        lefts, rights = ({ids[run[end] + step] for run in runs} for end, step in ((0, -1), (-1, 1)))
        begun, others = _opened(text, content.strip()), tuple(sites[1:])
        return Prompt(
            ids, sites[0], text, _only(lefts), _only(rights), others, begun, clock.printed
        )


def check_filled(checkpoint: Checkpoint, content: str) -> None:
    """Raise if a user message still has a slot for the layer.

    Raises:
        CheckpointError: It has.
    """
    for slot, what in _LAYER_SLOTS.items():
        if slot in content:
            raise CheckpointError(
                f"{checkpoint.where('template')} still has {slot}, {what}. Fill it in with "
                f"checkpoint.at_depth(blocks), or put the number in place of {slot}."
            )


def rendered(content: str, checkpoint: Checkpoint, tokenizer: Any, clock: Clock) -> str:
    """Render a user message with the tokenizer's chat template, up to the assistant's reply.

    Args:
        content: The user message.
        checkpoint: Has the system message, and whether the model thinks.
        tokenizer: A transformers tokenizer with a chat template.
        clock: Shows the template a date.

    Raises:
        CheckpointError: There is no chat template, or it does not render the message.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise CheckpointError(
            "The tokenizer has no chat template, so the verbalizer's prompt cannot be "
            "rendered. Use the tokenizer that ships with the checkpoint or with its base model."
        )
    text = _rendered(content, checkpoint, tokenizer, clock) + (checkpoint.prefill or "")
    if not is_unicode(text):
        raise CheckpointError(
            "The tokenizer's chat template renders what is not Unicode, half of a surrogate "
            "pair. Use the tokenizer that ships with the checkpoint."
        )
    return text


def marker_of(checkpoint: Checkpoint, tokenizer: Any) -> tuple[str, int]:
    """Return the text and the id of the marker, with what the checkpoint leaves to the tokenizer.

    Raises:
        CheckpointError: The marker's text is not one token, or not the one of its id.
    """
    text, number = checkpoint.marker, checkpoint.marker_id
    if number is not None and number >= len(tokenizer):
        raise CheckpointError(
            f"{checkpoint.where('marker_id')} is {number}, the tokenizer has the ids 0 to "
            f"{len(tokenizer) - 1}. Use the tokenizer that ships with the checkpoint."
        )
    text = tokenizer.decode([number]) if text is None else text
    pieces = list(tokenizer.encode(text, add_special_tokens=False))
    if number is None and len(pieces) == 1:
        return text, pieces[0]
    if pieces != [number]:
        where = checkpoint.source.get("marker_id", "the checkpoint")
        expected = "expected one token" if number is None else f"but {where} says [{number}]"
        raise CheckpointError(
            f"{text!r} tokenizes to {pieces}, {expected}. Use the tokenizer that ships with the "
            "checkpoint."
        )
    return text, pieces[0]


def _opened(text: str, content: str) -> str:
    """Return the beginning of an explanation that a prompt already has, or "".

    It is in what follows the user message, or it is the last word of the message itself.
    """
    if content in text:
        after = opened(text.rpartition(content)[2])
        return after or (OPEN if content.endswith(OPEN) else "")
    end = len(text.rstrip())
    return text[end - len(OPEN) :] if text[:end].endswith(OPEN) else ""


def _rendered(content: str, checkpoint: Checkpoint, tokenizer: Any, clock: Clock) -> str:
    """Render the user message in the form that the chat template takes: a string, or parts."""
    thinking = checkpoint.thinking
    options = {} if thinking is None else {"enable_thinking": thinking}
    system = checkpoint.system
    before = [] if system is None else [{"role": "system", "content": system}]
    failed: Exception | None = None
    texts: list[str] = []
    for form in (content, [{"type": "text", "text": content}]):
        try:
            with time_limit(TEMPLATE_SECONDS), clock.shown():
                text = tokenizer.apply_chat_template(
                    [*before, {"role": "user", "content": form}],
                    tokenize=False,
                    add_generation_prompt=True,
                    **options,
                )
        except Exception as error:  # A chat template is a program and may raise anything.
            failed = failed or error
            continue
        # A template of the other form may print the parts as a list, or nothing at all.
        if content.strip() in text:
            return text
        texts.append(text)
    if texts and str(checkpoint.marker) in texts[0]:
        return texts[0]  # The template changes the message; the marker's neighbours decide.
    if failed is None:
        raise CheckpointError(
            "The tokenizer's chat template leaves out a user message, given as a string or as "
            f"content parts; it renders {texts[0]!r:.200}. Use the tokenizer that ships with the "
            "checkpoint."
        )
    raise CheckpointError(
        f"The tokenizer's chat template does not render one user message: {failed}. "
        "Use the tokenizer that ships with the checkpoint."
    ) from failed


def _runs(ids: tuple[int, ...], checkpoint: Checkpoint) -> list[range]:
    """Return the runs of one or more markers between the two neighbours, where these are known."""
    runs: list[range] = []
    start = 0
    while start < len(ids):
        end = start
        while end < len(ids) and ids[end] == checkpoint.marker_id:
            end += 1
        inside = 0 < start < end < len(ids)
        if inside and (
            checkpoint.left_id in (None, ids[start - 1]) and checkpoint.right_id in (None, ids[end])
        ):
            runs.append(range(start, end))
        start = max(end, start + 1)
    return runs


def _miscounted(ids: tuple[int, ...], checkpoint: Checkpoint, found: int, slots: int) -> str:
    neighbours = ", ".join(
        f"({ids[i - 1]}, {ids[i + 1]})"
        for i in range(1, len(ids) - 1)
        if ids[i] == checkpoint.marker_id
    )
    return (
        f"Expected exactly {slots} x {checkpoint.marker!r} ({checkpoint.marker_id}) between "
        f"{_any(checkpoint.left_id)} and {_any(checkpoint.right_id)} in the verbalizer's prompt, "
        f"found {found}. Neighbours of the marker in the prompt: {neighbours or 'none'}. "
        "Use the tokenizer and template that ship with the checkpoint."
    )


def _only(ids: set[int]) -> int | None:
    return next(iter(ids)) if len(ids) == 1 else None


def _any(token_id: int | None) -> str:
    return "any token" if token_id is None else str(token_id)
