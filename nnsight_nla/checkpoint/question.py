"""Render the prompt of an activation oracle: a question about k vectors.

The prompt depends on the question, on the number of vectors and on the layer that they come from.
The slots are the run of k markers that the template puts there. They are found by the number of
tokens before them, so a question that contains the marker (most oracles use " ?") adds no slot::

    prompt = question_prompt(checkpoint, tokenizer, "What is the text about?", slots=3)
    prompt.sites                                # three adjacent positions
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import CheckpointError, shown
from .checkpoint import LAYER_SLOT, MARKER_SLOT, QUESTION_SLOT, Checkpoint
from .dates import Clock
from .prompt import Prompt, check_filled, marker_of, rendered

EXAMPLE = "What is the text about?"
"""The question of the prompt that is rendered when an oracle is opened, to check it."""


def first_prompt(checkpoint: Checkpoint, tokenizer: Any) -> Prompt:
    """Render the fixed prompt of a verbalizer, or an oracle's for one vector and `EXAMPLE`.

    Raises:
        CheckpointError: The prompt cannot be rendered, or its markers are not where they belong.
    """
    if checkpoint.asks:
        return question_prompt(checkpoint, tokenizer, EXAMPLE)
    return Prompt.render(checkpoint, tokenizer)


def question_prompt(
    checkpoint: Checkpoint,
    tokenizer: Any,
    question: str,
    *,
    slots: int = 1,
    layer: int | None = None,
) -> Prompt:
    """Render an oracle's prompt and find its slots.

    Args:
        checkpoint: The oracle's.
        tokenizer: Its tokenizer, with a chat template.
        question: The question.
        slots: The number of vectors.
        layer: The block that the vectors are the output of; by default the checkpoint's.

    Raises:
        CheckpointError: The tokenizer splits the marker, the chat template changes the message, or
            the oracle was not trained on that layer.
    """
    marker, marker_id = marker_of(checkpoint, tokenizer)
    checkpoint = replace(checkpoint, marker=marker, marker_id=marker_id)
    checkpoint = checkpoint if layer is None else checkpoint.at_layer(layer)
    template = checkpoint.template.replace(LAYER_SLOT, str(checkpoint.layer))
    check_filled(checkpoint, template)
    before, _, after = template.partition(MARKER_SLOT)
    filled = [part.replace(QUESTION_SLOT, question) for part in (before, marker * slots, after)]
    content = "".join(filled)
    clock = Clock(checkpoint.date)
    text = rendered(content, checkpoint, tokenizer, clock)
    start = text.find(content.strip())
    if start < 0:
        raise CheckpointError(
            "The tokenizer's chat template changes the oracle's message, so its slots cannot be "
            f"found: it renders {shown(text)}. Use the tokenizer that ships with the checkpoint."
        )
    ids = tuple(tokenizer.encode(text, add_special_tokens=False))
    head = tokenizer.encode(text[: start + len(filled[0].lstrip())], add_special_tokens=False)
    first = len(head)
    _check_slots(ids, list(head), slots, checkpoint)
    sites = range(first, first + slots)
    return Prompt(
        ids,
        first,
        text,
        ids[first - 1] if first else None,
        ids[first + slots],
        tuple(sites[1:]),
        date=clock.printed,
    )


def _check_slots(ids: tuple[int, ...], head: list[int], slots: int, checkpoint: Checkpoint) -> None:
    """Raise unless exactly `slots` markers follow the tokens of the text before them."""
    first, marker = len(head), checkpoint.marker_id
    run = 0
    while first + run < len(ids) and ids[first + run] == marker:
        run += 1
    if list(ids[:first]) != head or run != slots or first + run >= len(ids):
        near = list(ids[max(0, first - 2) : first + slots + 2])
        raise CheckpointError(
            f"Expected {slots} x {checkpoint.marker!r} ({marker}) at position {first} of the "
            f"oracle's prompt, found {run}; the tokens there are {near}. Use the tokenizer and the "
            "template that ship with the checkpoint."
        )
