"""Check what a caller passes as a prompt; the same for both kinds of target.

A prompt is a string, token ids (a list, or a tensor of one row), or a list of chat messages. The
message of a refusal says which of these what arrived is close to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch

from ..core.numeric import has_values, is_int
from ..core.time_limit import TEMPLATE_SECONDS, time_limit
from ..errors import InjectionError, shown

Prompt = str | list[int] | list[dict[str, Any]]
"""A prompt whose type was checked."""
MESSAGE = "{'role': 'user', 'content': 'Hello'}"
EXPECTED = f"Expected a string, a list of token ids, or a list of chat messages ({MESSAGE})"
FLAT = "Pass a flat list of prompts: nla.positions(model, [first, second])."
"""The advice for several prompts in place of one of a list."""


def listed(prompts: Any) -> list[Any]:
    """Return a prompt, or any iterable of prompts, as a list.

    Raises:
        InjectionError: It is neither, or token ids or messages without the list around them.
    """
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping) or not has_values(prompts):
        raise refusal(prompts, FLAT)
    several = list(_plain(prompts))
    if several and (
        all(map(is_int, several)) or all(isinstance(each, Mapping) for each in several)
    ):
        kind = "token ids" if is_int(several[0]) else "chat messages"
        raise InjectionError(
            f"{_shown(prompts)} is one prompt of {kind}, and a list of prompts was expected. Put a "
            "list around it: nla.positions(model, [prompt])."
        )
    return several


def several(prompt: Any) -> list[Any] | None:
    """Return the prompts of a list of prompts; ``None`` for one prompt, or anything else.

    Token ids and chat messages are one prompt; a list with a string or a list in it has several,
    also if it is the only one. A tensor of rows does not say what is padding, so it is no list.

    >>> several("a"), several([1, 2]), several(["a"]), several([[1, 2], "b"])
    (None, None, ['a'], [[1, 2], 'b'])
    """
    if not isinstance(prompt, list | tuple):
        return None
    items: list[Any] = list(prompt)
    return items if any(map(_is_prompt, items)) else None


def checked(prompt: Any, vocabulary: int, *, advice: str = FLAT) -> Prompt:
    """Return one prompt as a string, a list of token ids or a list of messages.

    Args:
        prompt: What the caller passed.
        vocabulary: The number of token ids of the target.
        advice: What to type for several prompts.

    Raises:
        InjectionError: It is not one prompt, or has ids that the target does not have.
    """
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list | tuple | torch.Tensor | np.ndarray) or not has_values(prompt):
        raise refusal(prompt, advice)
    items = list(_plain(prompt))
    if len(items) == 1 and isinstance(items[0], str | list | tuple):
        return checked(items[0], vocabulary, advice=advice)
    if isinstance(prompt, torch.Tensor | np.ndarray) and not items:
        return []
    if not items or not (all(map(is_int, items)) or all(map(_is_message, items))):
        raise refusal(prompt, advice)
    if isinstance(items[0], Mapping):
        return [dict(each) for each in items]
    strange = [each for each in items if not 0 <= each < vocabulary]
    if strange:
        raise InjectionError(
            f"Token id {strange[0]} is not in the target's vocabulary, 0 to {vocabulary - 1}. Use "
            "the target's own tokenizer: model.tokenizer(text)['input_ids']."
        )
    return items


@contextmanager
def rendering(prompt: Prompt, name: str) -> Iterator[None]:
    """Tokenize in this block; a prompt that the tokenizer or its template refuses is our error.

    Raises:
        InjectionError: The block raised what a tokenizer or a chat template raises.
    """
    chat = isinstance(prompt, list) and isinstance(prompt[0], dict)
    try:
        with time_limit(TEMPLATE_SECONDS) if chat else nullcontext():
            yield
    except TimeoutError as error:
        raise InjectionError(
            f"The chat template of {name} does not end: {error}. Pass the prompt as text, or use "
            "another tokenizer."
        ) from error
    except Exception as error:
        if not isinstance(error, TypeError | ValueError) and "jinja2" not in type(error).__module__:
            raise
        why = str(error).split("\n")[0].rstrip(".")
        if not chat:
            message = f"The tokenizer of {name} refuses {_shown(prompt)}: {why}."
        elif "chat_template" in why:
            message = f"{name} has no chat template. Pass the text itself, a string."
        else:
            roles = ", ".join(repr(each["role"]) for each in prompt if isinstance(each, dict))
            message = (
                f"The chat template of {name} refuses these messages, with the roles {roles}: "
                f"{why}. Pass messages in the form that it takes."
            )
        raise InjectionError(message) from error


def refusal(prompt: Any, advice: str = FLAT) -> InjectionError:
    """Return the error for something that is not one prompt."""
    readable = isinstance(prompt, Iterable) and has_values(prompt)
    items = list(_plain(prompt)) if readable else None
    if isinstance(prompt, Mapping):
        return InjectionError(
            f"{_shown(prompt)} is not a prompt. {EXPECTED}. For one message: [message]."
        )
    if not items:
        return InjectionError(f"{_shown(prompt)} is not a prompt. {EXPECTED}.")
    if all(isinstance(each, str) for each in items):
        return _several(prompt, len(items), "strings", advice)
    if all(isinstance(each, list | tuple) for each in items):
        return _several(prompt, len(items), "lists", advice)
    if all(isinstance(each, Mapping) for each in items):
        number, bad = next((i, each) for i, each in enumerate(items) if not _is_message(each))
        keys = ", ".join(map(repr, bad)) or "none"
        return InjectionError(
            f"Message {number} is not a chat message: its keys are {keys}. A message has a role, a "
            f"string, and its content: {MESSAGE}."
        )
    return InjectionError(f"{_shown(prompt)} is not a prompt. {EXPECTED}.")


def _several(prompt: Any, count: int, kind: str, advice: str) -> InjectionError:
    return InjectionError(
        f"{_shown(prompt)} is {count} {kind}, and one prompt was expected. {advice}"
    )


def _plain(values: Iterable[Any]) -> Iterable[Any]:
    """Return tensors and arrays as nested lists, and their numbers as Python's."""
    if isinstance(values, torch.Tensor | np.ndarray):
        found = values.tolist()
        return found if isinstance(found, list) else [found]
    return (
        each.item()
        if isinstance(each, np.generic) or (isinstance(each, torch.Tensor) and each.ndim == 0)
        else each
        for each in values
    )


def _is_prompt(value: Any) -> bool:
    rows = isinstance(value, torch.Tensor | np.ndarray) and value.ndim > 0
    return rows or isinstance(value, str | list | tuple)


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and "content" in value


def _shown(value: Any) -> str:
    text = shown(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
