"""What a card shows of an explained token, beyond its record in a `Reading`.

The target's next tokens, the samples and what they agree on, the parts of the explanation with what
the vector loses without each, what the grade and the FVE were measured against, the receipt, and
the lines of code that give this explanation again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import NLAError
from ..reading import read as reading

if TYPE_CHECKING:
    from .runs import Run

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_SHORTEST, _MOST_WORDS = 4, 8
"""The shortest word that counts as content unless it is a number or capitalised; the most that are
named."""


def cards(
    run: Run, positions: Sequence[int], samples: int, setup: str
) -> dict[int, dict[str, Any]]:
    """Return the record of each of these positions, whose texts were generated.

    Args:
        run: The run.
        positions: Its positions, all settled.
        samples: Texts per position.
        setup: The lines of code that load the models; ``""`` if the reader has them.
    """
    handle = run.handle(positions, samples)
    listed = handle.to_dict()["explanations"]
    by_position = {position: listed[i * samples : (i + 1) * samples]
                   for i, position in enumerate(positions)}  # fmt: skip
    well = [position for position in positions if by_position[position][0]["error"] is None]
    parts = _claims(run, well, samples)
    labels = handle.capture.trust
    found: dict[int, dict[str, Any]] = {}
    for position, texts in by_position.items():
        known = run.records[position]
        token = reading.token_record(
            position, known["token"], known["part"], texts[0], labels.get(position)
        )
        more: dict[str, Any] = {"next": run.following[position] or None}
        if position in parts:
            said = [each["text"] for each in texts]
            more |= {
                "samples": said if samples > 1 else None,
                "agree": agreement(said) if samples > 1 else None,
                "claims": parts[position],
                "receipt": list(run.handle([position], samples).receipt.facts().items()),
                "code": code(run, position, samples, setup),
            }
        given = {name: value for name, value in more.items() if value is not None}
        found[position] = {**vars(token), "read": True, "whole": known["whole"], **given}
    return found


def code(run: Run, position: int, samples: int, setup: str = "") -> str:
    """Return the lines of code that give an explanation again."""
    options = f", tokens={run.span.tokens[position]!r}, positions={position}"
    if samples > 1:
        options += f", samples={samples}, sampling=Sampling(temperature=1.0)"
    read = f"{run.name}.layer(model).output[0, {position}]"
    explain = f"thought = {run.name}.explain({read}{options})"
    imports = ["import torch"] if run.writes else []
    imports += ["from nnsight_nla import Sampling"] if samples > 1 else []
    shown = "print(thought.samples)" if samples > 1 else "print(thought.text)"
    return "\n".join([*imports, *filter(None, [setup]), *run.code(run.layer, explain), shown])


def agreement(texts: Sequence[str]) -> str:
    """Return which words of the first text are in the others too, by how many texts have them.

    >>> agreement(["About Paris, in France.", "Paris in France.", "Paris, by the Seine."])
    '3 of 3: Paris; 2 of 3: France'
    >>> agreement(["About Paris.", "A cow."])
    'nothing: the 2 samples have no word in common'
    """
    words = [{word.lower() for word in _WORD.findall(text)} for text in texts]
    by_count: dict[int, list[str]] = {}
    for word in dict.fromkeys(filter(_content, _WORD.findall(texts[0]))):
        in_texts = sum(word.lower() in each for each in words)
        by_count.setdefault(in_texts, []).append(word)
    by_count.pop(1, None)
    lines = [
        f"{number} of {len(texts)}: {', '.join(by_count[number][:_MOST_WORDS])}"
        for number in sorted(by_count, reverse=True)
    ]
    return "; ".join(lines) or f"nothing: the {len(texts)} samples have no word in common"


def _content(word: str) -> bool:
    return len(word) >= _SHORTEST or not word[:1].islower()


def _claims(run: Run, positions: Sequence[int], samples: int) -> dict[int, list[tuple[str, float]]]:
    """Return the parts of each explanation with the cosine that is lost without each."""
    nla: Any = run.nla
    if not positions or not nla.has_reconstructor:
        return {position: [] for position in positions}
    try:
        found = nla.claims(run.handle(positions, samples))
    except NLAError:  # A text that cannot be reconstructed; its label says so.
        return {position: [] for position in positions}
    return {
        position: [(part.text, part.carries) for part in each.parts]
        for position, each in zip(positions, found, strict=True)
    }
