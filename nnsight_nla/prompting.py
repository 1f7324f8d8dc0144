"""The verbalizer's fixed prompt, the marker in it, and the explanation in what it writes back.

The prompt is the same for every vector; only the residual at the marker differs. It is rendered in
two steps (chat template to text, text to ids) because one-step tokenization has split markers, and
a second BOS token would move everything by one. The marker is found by its id *and* both
neighbours, so the same character in other text is not a site.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from .checkpoint import MARKER_SLOT, Checkpoint
from .errors import CheckpointError

OPEN, CLOSE = "<explanation>", "</explanation>"


@dataclass(frozen=True)
class Prompt:
    """The verbalizer's prompt, ready to run."""

    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    marker_position: int
    """Where the vector is written, counted from the left."""
    text: str
    """The rendered prompt."""
    left_id: int
    """The id of the token before the marker."""
    right_id: int
    """The id of the token after the marker."""

    @property
    def hash(self) -> str:
        """SHA-256 of the token ids, in hex."""
        return hashlib.sha256(" ".join(map(str, self.ids)).encode()).hexdigest()

    @staticmethod
    def render(checkpoint: Checkpoint, tokenizer: Any) -> Prompt:
        """Render `checkpoint`'s template with the live tokenizer and find its one marker.

        Args:
            checkpoint: Where the template, the marker and its neighbours come from.
            tokenizer: A transformers tokenizer with a chat template.

        Raises:
            CheckpointError: The tokenizer splits the marker, knows it by another id, puts other
                tokens beside it, or the prompt has no site or several.
        """
        _check_marker(checkpoint, tokenizer)
        if getattr(tokenizer, "chat_template", None) is None:
            raise CheckpointError(
                "The tokenizer has no chat template, so the verbalizer's prompt cannot be "
                "rendered. Use the tokenizer that ships with the checkpoint or with its base model."
            )
        content = checkpoint.template.replace(MARKER_SLOT, checkpoint.marker)
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # A chat template is a program: whatever its author raises.
            raise CheckpointError(
                f"The tokenizer's chat template does not render one user message: {error}. "
                "Use the tokenizer that ships with the checkpoint."
            ) from error
        ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        sites = _sites(ids, checkpoint)
        if len(sites) != 1:
            beside = ", ".join(
                f"({ids[i - 1]}, {ids[i + 1]})"
                for i in range(1, len(ids) - 1)
                if ids[i] == checkpoint.marker_id
            )
            raise CheckpointError(
                f"The verbalizer's prompt has {len(sites)} places where {checkpoint.marker!r} "
                f"({checkpoint.marker_id}) stands between {_any(checkpoint.left_id)} and "
                f"{_any(checkpoint.right_id)}, expected exactly 1. "
                f"Beside it stand: {beside or 'nothing'}. "
                "Use the tokenizer and template that ship with the checkpoint."
            )
        position = sites[0]
        return Prompt(ids, position, text, ids[position - 1], ids[position + 1])


def _check_marker(checkpoint: Checkpoint, tokenizer: Any) -> None:
    pieces = list(tokenizer.encode(checkpoint.marker, add_special_tokens=False))
    if pieces != [checkpoint.marker_id]:
        where = checkpoint.source.get("marker_id", "the checkpoint")
        raise CheckpointError(
            f"{checkpoint.marker!r} tokenizes to {pieces}, but {where} says "
            f"[{checkpoint.marker_id}]. Use the tokenizer that ships with the checkpoint."
        )


def _sites(ids: tuple[int, ...], checkpoint: Checkpoint) -> list[int]:
    """Positions of the marker between its two neighbours, as far as these are known."""
    return [
        i
        for i in range(1, len(ids) - 1)
        if ids[i] == checkpoint.marker_id
        and checkpoint.left_id in (None, ids[i - 1])
        and checkpoint.right_id in (None, ids[i + 1])
    ]


def _any(token_id: int | None) -> str:
    return "any token" if token_id is None else str(token_id)


def extract(raw: str) -> tuple[str, bool]:
    r"""The explanation inside a verbalizer's reply, and whether its closing tag came.

    A reply without the tags is not lost: what there is counts as the text.

    >>> extract("<explanation>\nAbout Paris.\n</explanation>")
    ('About Paris.', True)
    >>> extract("<explanation>About Par")
    ('About Par', False)
    """
    body = raw.split(OPEN, 1)[-1]
    text, closing, _ = body.partition(CLOSE)
    return text.strip(), bool(closing)


def proper(raw: str) -> str | None:
    r"""Why a reply is no proper explanation: a tag is missing, or nothing stands between them.

    >>> proper("<explanation>About Paris.</explanation>") is None
    True
    >>> proper("<explanation>About Par")
    'the reply has no closing </explanation> tag'
    """
    if OPEN not in raw:
        return f"the reply has no {OPEN} tag"
    text, closed = extract(raw)
    if not closed:
        return f"the reply has no closing {CLOSE} tag"
    if OPEN in text:
        return f"the reply has {OPEN} twice"
    return None if text else "the explanation is empty"


def snippets(text: str) -> tuple[str, ...]:
    r"""The explanation's snippets: its paragraphs, or its lines where it has one paragraph only.

    >>> snippets("A city.\n\nIts language.")
    ('A city.', 'Its language.')
    >>> snippets("A city.\nIts language.")
    ('A city.', 'Its language.')
    """
    parts = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) == 1:
        parts = [line.strip() for line in text.splitlines() if line.strip()]
    return tuple(parts)
