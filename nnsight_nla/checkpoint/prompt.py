"""The verbalizer's fixed prompt, the marker in it, and the explanation in what it writes back.

The prompt is the same for every vector; only the residual at the marker differs. It is rendered in
two steps (chat template to text, text to ids) because one-step tokenization has split markers, and
a second BOS token would move everything by one. The marker is found by its id *and* both
neighbours, so the same character in other text is not a site. A template may have several slots;
all get the vector, and markers that stand side by side count as one run between two neighbours::

    prompt = Prompt.render(checkpoint, tokenizer)
    prompt.ids[prompt.marker_position] == checkpoint.marker_id
    prompt.sites                                    # every place that is written
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from .checkpoint import DEPTH_SLOT, MARKER_SLOT, Checkpoint

OPEN, CLOSE = "<explanation>", "</explanation>"


@dataclass(frozen=True)
class Prompt:
    """The verbalizer's prompt, ready to run."""

    ids: tuple[int, ...]
    """Token ids, special tokens included."""
    marker_position: int
    """Where the vector is written, counted from the left; the first place of several."""
    text: str
    """The rendered prompt."""
    left_id: int | None
    """The id of the token before the marker; ``None`` where several slots differ in it."""
    right_id: int | None
    """The id of the token after the marker; ``None`` where several slots differ in it."""
    more_positions: tuple[int, ...] = ()
    """The other places where the same vector is written, for a template with several slots."""

    @property
    def sites(self) -> tuple[int, ...]:
        """Every place where the vector is written, from the left."""
        return (self.marker_position, *self.more_positions)

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
        if DEPTH_SLOT in content:
            raise CheckpointError(
                f"{checkpoint.where('template')} still has {DEPTH_SLOT}: at what share of the "
                "target's depth, in percent, was the vector read? Say how many blocks the target "
                f"has (checkpoint.at_depth(blocks)), or put the number in place of {DEPTH_SLOT}."
            )
        options: dict[str, Any] = {}
        if checkpoint.thinking is not None:
            options["enable_thinking"] = checkpoint.thinking
        try:
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                tokenize=False,
                add_generation_prompt=True,
                **options,
            )
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
        except Exception as error:  # A chat template is a program: whatever its author raises.
            raise CheckpointError(
                f"The tokenizer's chat template does not render one user message: {error}. "
                "Use the tokenizer that ships with the checkpoint."
            ) from error
        runs = _runs(ids, checkpoint)
        sites = [position for run in runs for position in run]
        slots = checkpoint.template.count(MARKER_SLOT)
        if len(sites) != slots:
            raise CheckpointError(_miscounted(ids, checkpoint, len(sites), slots))
        lefts, rights = ({ids[run[end] + step] for run in runs} for end, step in ((0, -1), (-1, 1)))
        return Prompt(ids, sites[0], text, _only(lefts), _only(rights), tuple(sites[1:]))


def _check_marker(checkpoint: Checkpoint, tokenizer: Any) -> None:
    pieces = list(tokenizer.encode(checkpoint.marker, add_special_tokens=False))
    if pieces != [checkpoint.marker_id]:
        where = checkpoint.source.get("marker_id", "the checkpoint")
        raise CheckpointError(
            f"{checkpoint.marker!r} tokenizes to {pieces}, but {where} says "
            f"[{checkpoint.marker_id}]. Use the tokenizer that ships with the checkpoint."
        )


def _runs(ids: tuple[int, ...], checkpoint: Checkpoint) -> list[range]:
    """Runs of markers between the two neighbours, as far as these are known; one is a run too."""
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
    beside = ", ".join(
        f"({ids[i - 1]}, {ids[i + 1]})"
        for i in range(1, len(ids) - 1)
        if ids[i] == checkpoint.marker_id
    )
    return (
        f"The verbalizer's prompt has {found} places where {checkpoint.marker!r} "
        f"({checkpoint.marker_id}) stands between {_any(checkpoint.left_id)} and "
        f"{_any(checkpoint.right_id)}, expected exactly {slots}. "
        f"Beside it stand: {beside or 'nothing'}. "
        "Use the tokenizer and template that ship with the checkpoint."
    )


def _only(ids: set[int]) -> int | None:
    return next(iter(ids)) if len(ids) == 1 else None


def _any(token_id: int | None) -> str:
    return "any token" if token_id is None else str(token_id)


def wrap(text: str) -> str:
    r"""An explanation as a verbalizer is trained to write it: between its tags.

    >>> wrap("About Paris.")
    '<explanation>\nAbout Paris.\n</explanation>'
    """
    return f"{OPEN}\n{text}\n{CLOSE}"


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
