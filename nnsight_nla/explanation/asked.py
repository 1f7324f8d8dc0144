"""What an ``ask()`` call asks about each of its rows: the question, and the prompt for it.

`Asker` checks questions, choices and layer, and renders the prompt of each different question
once. Nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch
from torch import Tensor

from .. import _compat
from ..checkpoint.prompt import Prompt
from ..checkpoint.question import question_prompt
from ..core.nesting import nested
from ..core.numeric import is_unicode
from ..errors import CheckpointError, InjectionError, VerbalizationError, shown
from .arguments import check_vectors
from .capturing import provenance

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..core.nesting import Nested
    from ..core.sampling import Sampling


class AskOptions(TypedDict):
    """What is asked in one ``ask()`` call."""

    questions: Any
    """One question, or one for each row."""
    choices: Any
    """The answers to choose from, if they are not generated."""


MOST_CACHED = 4096
"""Prompts that an `Asker` keeps."""


@dataclass(frozen=True)
class Asked:
    """The questions of one ``ask()`` call."""

    questions: tuple[str, ...]
    """The question of each row; none where vectors are explained, one at each marker."""
    prompts: tuple[Prompt, ...]
    """The prompt of each row; rows with the same question share it. None in a file's handle."""
    slots: tuple[int, ...]
    """The number of vectors of each row."""
    layer: int
    """The block that the oracle is told the vectors are of."""
    choices: tuple[str, ...] = ()
    """The answers to choose from; empty if the answer is generated."""
    choice_ids: tuple[tuple[int, ...], ...] = ()
    """The tokens of each choice."""


class Asker:
    """Renders the questions of one oracle."""

    def __init__(self, checkpoint: Checkpoint, tokenizer: Any, context: int, name: str) -> None:
        """Prepare to ask; nothing is rendered yet.

        Args:
            checkpoint: The oracle's.
            tokenizer: Its tokenizer.
            context: The longest sequence that it reads, in tokens.
            name: Its name, for messages.
        """
        self.checkpoint, self.tokenizer = checkpoint, tokenizer
        self.context, self.name = context, name
        self._prompts: dict[tuple[str, int], Prompt] = {}

    def asked(
        self,
        questions: Any,
        slots: Sequence[int],
        shape: tuple[int, ...],
        *,
        sampling: Sampling,
        choices: Any = None,
    ) -> Asked:
        """Check the questions of one ``ask()`` call and render their prompts.

        Args:
            questions: One question, or one for each row, in `shape`.
            slots: The number of vectors of each row.
            shape: The shape of the handle.
            sampling: Has the longest answer.
            choices: The answers to choose from.

        Raises:
            VerbalizationError: Questions or choices do not fit, or a question is too long.
            CheckpointError: The checkpoint has no question in its prompt.
        """
        check_asks(self.checkpoint, self.name)
        listed = _questions(questions, shape, len(slots))
        words = check_choices(choices)
        ids = tuple(map(self._tokens, words))
        _check_apart(words, ids)
        longest = max(map(len, ids), default=sampling.max_new_tokens)
        prompts = tuple(
            self._prompt(question, count, self.context - longest)
            for question, count in zip(listed, slots, strict=True)
        )
        layer = self.checkpoint.layer
        return Asked(tuple(listed), prompts, tuple(slots), layer, words, ids)

    def _prompt(self, question: str, slots: int, room: int) -> Prompt:
        key = (question, slots)
        found = self._prompts.get(key)
        if found is None:
            if len(self._prompts) >= MOST_CACHED:
                self._prompts.clear()
            found = self._prompts[key] = question_prompt(
                self.checkpoint, self.tokenizer, question, slots=slots
            )
        if len(found.ids) > room:
            raise VerbalizationError(
                f"The prompt of question {shown(question)} with {slots} vectors has "
                f"{len(found.ids)} tokens; {self.name} reads {self.context}, of which "
                f"{self.context - room} are for the answer. Shorten the question, pass fewer "
                "vectors, or Sampling(max_new_tokens=...) with a smaller number."
            )
        return found

    def _tokens(self, choice: str) -> tuple[int, ...]:
        ids = self.tokenizer.encode(choice, add_special_tokens=False)
        if not ids:
            raise VerbalizationError(f"choices: {choice!r} has no token. Use another word.")
        return tuple(ids)


def check_asks(checkpoint: Checkpoint, name: str) -> None:
    """Raise if a checkpoint explains vectors and cannot be asked about them.

    Raises:
        CheckpointError: Its prompt has no question.
    """
    if not checkpoint.asks:
        raise CheckpointError(
            f"{name} explains vectors; its prompt has no place for a question. Type "
            "nla.explain(vectors), or load an activation oracle: NLA.on(model, av='the adapter')."
        )


def check_question(question: object, choices: object) -> None:
    """Raise if there are answers to choose from, and no question.

    Raises:
        VerbalizationError: There are.
    """
    if question is None and choices is not None:
        raise VerbalizationError(
            f"choices={shown(choices)} without a question. Pass both, to an oracle: "
            "question='Is the tone calm?', choices=['Yes', 'No']."
        )


def check_explains(checkpoint: Checkpoint, name: str) -> None:
    """Raise if a checkpoint answers questions and cannot explain a vector without one.

    Raises:
        CheckpointError: Its prompt has a question.
    """
    if checkpoint.asks:
        raise CheckpointError(
            f"{name} is an activation oracle, which answers a question about vectors, and got "
            "none. Type nla.ask(vectors, 'What is the text about?'); for many tokens or "
            "experiments, use nla.asking('What is the text about?') in place of nla."
        )


def check_single(checkpoint: Checkpoint, what: str) -> None:
    """Raise if each explanation is of several vectors, and `what` has one for each.

    Raises:
        CheckpointError: The verbalizer has a marker for each of several vectors.
    """
    if checkpoint.slots > 1:
        raise CheckpointError(
            f"{what}: it explains one vector at a time, and this verbalizer reads "
            f"{checkpoint.slots} at once, one at each marker. Type nla.explain(torch.stack([a, b], "
            "dim=-2)); for many, bulk.run(nla, 'rows.parquet', 'out.parquet') with a column "
            "activation_vectors."
        )


def grouped(vectors: Any, d_model: int) -> tuple[Tensor | None, tuple[int, ...], tuple[int, ...]]:
    """Return the vectors of an ``ask()`` call as rows of equally many slots.

    Args:
        vectors: ``[*shape, slots, d_model]``, ``[d_model]`` for one vector, or a list of tensors
            ``[slots, d_model]`` with different numbers of slots.
        d_model: The width that the oracle reads.

    Returns:
        The vectors, ``[rows, most slots, d_model]``, detached and copied, with zeros where a row
        has fewer (``None`` for a fake tensor); the number of slots of each row; and the shape.

    Raises:
        InjectionError: They are not floating-point tensors of that width, or there are none.
    """
    if isinstance(vectors, list | tuple):
        return _ragged(cast("Sequence[Any]", vectors), d_model)
    check_vectors(vectors, d_model)
    held = vectors[None] if vectors.ndim == 1 else vectors
    shape, slots = tuple(held.shape[:-2]), held.shape[-2]
    if slots == 0:
        raise InjectionError(
            f"Expected vectors of shape [..., slots, {d_model}], got {list(held.shape)}: no vector "
            "to ask about. Pass at least one: residual[0, -1:]."
        )
    rows = 1
    for size in shape:
        rows *= size
    flat = None
    if not _compat.is_fake(held):
        flat = held.detach().reshape(rows, slots, d_model).clone()
    return flat, (slots,) * rows, shape


def _ragged(
    parts: Sequence[Any], d_model: int
) -> tuple[Tensor | None, tuple[int, ...], tuple[int, ...]]:
    if not parts:
        raise InjectionError(
            f"Expected tensors of shape [slots, {d_model}], got an empty list: nothing to ask "
            "about. Pass one tensor for each question."
        )
    for number, each in enumerate(parts):
        check_vectors(each, d_model)
        if each.ndim != 2 or not len(each):
            raise InjectionError(
                f"vectors[{number}] has shape {list(each.shape)}, expected [slots, {d_model}] with "
                "at least one slot. For one vector: vector[None]."
            )
    slots = tuple(len(each) for each in parts)
    if any(_compat.is_fake(each) for each in parts):
        return None, slots, (len(parts),)
    flat = torch.nn.utils.rnn.pad_sequence([each.detach() for each in parts], batch_first=True)
    return flat, slots, (len(parts),)


def ungrouped(
    held: Tensor, slots: Sequence[int], shape: tuple[int, ...]
) -> Tensor | Nested[Tensor]:
    """Return vectors in the form in which they were asked about: the inverse of `grouped`."""
    if len(set(slots)) <= 1:
        count = slots[0] if slots else held.shape[1]
        return held[:, :count].reshape(*shape, count, held.shape[-1])
    return nested([row[:count] for row, count in zip(held, slots, strict=True)], shape)


def _questions(given: Any, shape: tuple[int, ...], rows: int) -> list[str]:
    """Return the question of each row.

    Raises:
        VerbalizationError: A question is empty or not a string, or there is not one for each row.
    """
    if isinstance(given, str):
        listed = [given] * rows
        checked = [given]
    else:
        try:
            found = provenance(given, shape, "questions")
        except VerbalizationError as error:
            count = len(given) if hasattr(given, "__len__") else 1
            raise VerbalizationError(
                f"{count} question{'' if count == 1 else 's'} for vectors of shape {list(shape)} "
                "(without slots and d_model): expected one question, or one for each in that "
                "shape. To ask each about one vector: vectors[:, None]; for several questions "
                "about the same vectors: vectors.expand(len(questions), -1, -1)."
            ) from error
        listed = checked = [] if found is None else found
        if found is None:
            raise VerbalizationError("questions=None: expected a question, such as 'What is it?'.")
    for question in checked:
        if not isinstance(question, str) or not is_unicode(question):
            raise VerbalizationError(
                f"question {shown(question)}: expected a text, such as 'What is the tone?'."
            )
        if not question.strip():
            raise VerbalizationError(
                f"question {shown(question)} is empty. Write what you want to know, such as "
                "'What is the tone?'."
            )
    return listed


def check_choices(given: Any) -> tuple[str, ...]:
    """Return the choices of a question; none if the answer is generated.

    Raises:
        VerbalizationError: They are not at least two different words.
    """
    if given is None:
        return ()
    good = isinstance(given, list | tuple) and len(cast("list[Any]", given)) > 1
    words = cast("list[Any]", list(given) if good else [])
    if not good or not all(isinstance(each, str) and each.strip() for each in words):
        raise VerbalizationError(
            f"choices={shown(given)}: expected at least two words, such as ['Yes', 'No']."
        )
    if len(set(words)) < len(words):
        raise VerbalizationError(f"choices={shown(given)}: expected different words.")
    return tuple(words)


def _check_apart(words: Sequence[str], ids: Sequence[tuple[int, ...]]) -> None:
    """Raise if the tokens of one choice are the beginning of another's.

    Raises:
        VerbalizationError: They are.
    """
    for one, first in zip(words, ids, strict=True):
        for other, second in zip(words, ids, strict=True):
            if one != other and second[: len(first)] == first:
                raise VerbalizationError(
                    f"choices={shown(list(words))}: {other!r} begins with the tokens of {one!r}, "
                    "so an answer can begin with both. Use choices of which none begins another, "
                    "or leave choices out and compare the answers."
                )
