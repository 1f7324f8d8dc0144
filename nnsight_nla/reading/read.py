"""How a `Reading` is made: one forward pass reads every position, one batch explains them.

The text is tokenized once and runs as ids, so the tokens shown are the tokens that were read, at
their real positions, whatever the padding. With `generate`, the model first writes its reply; then
prompt and reply are read together::

    tokens  →  [ reply ]  →  residuals at block K  →  handle  →  records
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from ..errors import NLAError
from ..explanation.handle import Explanation
from ..models import bridge, hosts
from .records import Reading, TokenReading

if TYPE_CHECKING:
    from ..checkpoint.checkpoint import Checkpoint
    from ..core.sampling import Sampling
    from ..models.hosts import Positions

Which = Literal["all", "reply"] | int | slice | Sequence[int]
"""Which positions are read; negative ones count from the end."""
TEMPLATE = "template"


class Reads(Protocol):
    """The NLA, as far as reading needs it."""

    av: Any
    checkpoint: Checkpoint

    def layer(self, model: Any) -> Any:
        """The handle on the residual."""
        ...

    def positions(self, model: Any, prompts: Any) -> list[Positions]:
        """The tokens of prompts."""
        ...

    def explain(self, vectors: torch.Tensor, **options: Any) -> Explanation:
        """Capture vectors."""
        ...

    def resolve(self, handles: Any = None) -> None:
        """Write the texts."""
        ...


def read(
    nla: Reads,
    model: Any,
    prompt: Any,
    *,
    positions: Which = "all",
    generate: int | None = None,
    remote: bool = False,
    sampling: Sampling | None = None,
) -> Reading:
    """Explain every token of `prompt`, and of the model's reply; see `NLA.read`."""
    nla.layer(model)  # Whatever is wrong with the model is said before it runs.
    bridged = bridge.is_bridge(model)
    if bridged:
        bridge.check_here(remote=remote)
    span = _one(nla, model, prompt)
    begun = len(span.ids)
    if generate is not None:
        span = _with_reply(model, span, _count(generate), remote)
    wanted = _wanted(positions, len(span.ids), begun)
    if bridged:
        found = bridge.residual(model, span.ids, nla.checkpoint.layer)
        tokens = [span.tokens[place] for place in wanted]
        thoughts = nla.explain(found[wanted], tokens=tokens, positions=wanted, sampling=sampling)
    else:
        thoughts = _traced(nla, model, span, wanted, remote, sampling)
    nla.resolve(thoughts)
    parts = _parts(model.tokenizer, span.ids[:begun], prompt)
    special = set(model.tokenizer.all_special_ids)
    parts += [TEMPLATE if token in special else "reply" for token in span.ids[begun:]]
    said = dict(zip(wanted, thoughts.to_dict()["explanations"], strict=True))
    records = tuple(
        _record(place, token, part, said.get(place))
        for place, (token, part) in enumerate(zip(span.tokens, parts, strict=True))
    )
    names = [_name((bridge if bridged else hosts).describe(model)), _name(hosts.describe(nla.av))]
    return Reading(records, names[0], names[1], nla.checkpoint.layer)


def _traced(
    nla: Reads,
    model: Any,
    span: Positions,
    wanted: list[int],
    remote: bool,
    sampling: Sampling | None,
) -> Explanation:
    ids = torch.tensor([span.ids])
    tokens = [span.tokens[place] for place in wanted]
    with torch.no_grad(), model.trace(ids, remote=remote) as tracer:
        residual = nla.layer(model).output[0]
        thoughts = nla.explain(residual[wanted], tokens=tokens, positions=wanted, sampling=sampling)
        tracer.stop()
    return thoughts


def _with_reply(model: Any, span: Positions, new_tokens: int, remote: bool) -> Positions:
    """The prompt's tokens and what the model goes on to write, greedily."""
    if bridge.is_bridge(model):
        return bridge.span(model, bridge.continued(model, span.ids, new_tokens))
    ids = torch.tensor([span.ids])
    options = {"max_new_tokens": new_tokens, "do_sample": False}
    with torch.no_grad(), model.generate(ids, remote=remote, **options) as tracer:
        written = tracer.result.cpu().save()
    every = tuple(int(token) for token in written[0])
    return hosts.Positions(every, tuple(model.tokenizer.decode([token]) for token in every))


def _one(nla: Reads, model: Any, prompt: Any) -> Positions:
    """The tokens of one prompt: a string, token ids, or chat messages."""
    if isinstance(prompt, torch.Tensor):
        prompt = prompt.flatten().tolist()
    elif isinstance(prompt, tuple):
        prompt = list(prompt)
    (span,) = nla.positions(model, prompt if isinstance(prompt, str) else [prompt])
    if not span.ids:
        raise NLAError(f"The prompt {prompt!r} has no tokens; there is nothing to read.")
    return span


def _count(generate: object) -> int:
    if isinstance(generate, bool) or not isinstance(generate, int) or generate < 1:
        raise NLAError(
            f"generate={generate!r}: how many tokens may the reply have? A whole number from 1."
        )
    return generate


def _wanted(positions: object, length: int, begun: int) -> list[int]:
    """The positions to read, counted from the left, each once and in order."""
    every = range(length)
    if isinstance(positions, str):
        if positions == "all":
            return list(every)
        if positions == "reply" and begun < length:
            return list(every[begun:])
        raise NLAError(
            f"positions={positions!r}: expected 'all', 'reply' (with generate=N, where the model "
            "writes something), an index, several ([0, 3, -1]), or a slice."
        )
    if isinstance(positions, slice):
        given: list[int] = list(every[positions])
    else:
        try:
            listed = positions if isinstance(positions, Sequence | range) else [positions]
            given = [every[place] for place in listed]  # type: ignore[index]
        except (IndexError, TypeError) as error:
            raise NLAError(
                f"positions={positions!r}: the text has {length} tokens, 0 to {length - 1}."
            ) from error
    if not given:
        raise NLAError(f"positions={positions!r} names none of the text's {length} tokens.")
    return sorted(set(given))


def _parts(tokenizer: Any, ids: Sequence[int], prompt: Any) -> list[str]:
    """For each token, whose words it is part of: a chat role's, the prompt's, the template's."""
    special = set(tokenizer.all_special_ids)
    messages = prompt if isinstance(prompt, list) and isinstance(prompt[0], dict) else None
    if messages is None:
        return [TEMPLATE if token in special else "prompt" for token in ids]
    text, spans = _located(tokenizer, ids)
    parts, cursor = [TEMPLATE] * len(ids), 0
    for message in messages:
        for content in _contents(message):
            start = text.find(content, cursor)
            if start < 0:  # The template rewrote it.
                continue
            cursor = start + len(content)
            for place, (first, last) in enumerate(spans):
                if first < cursor and last > start and ids[place] not in special:
                    parts[place] = str(message.get("role", "prompt"))
    return parts


def _contents(message: dict[str, Any]) -> list[str]:
    """The texts of one chat message, as a template may print them."""
    content = message.get("content")
    pieces = content if isinstance(content, list) else [{"text": content}]
    texts = [piece.get("text") for piece in pieces if isinstance(piece, dict)]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _located(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """The text of `ids`, and where in it each token lies."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(again["input_ids"]) == list(ids):
            return text, [tuple(span) for span in again["offset_mapping"]]
    spans: list[tuple[int, int]] = []
    pieces = [tokenizer.decode([token]) for token in ids]
    for piece in pieces:
        begin = spans[-1][1] if spans else 0
        spans.append((begin, begin + len(piece)))
    return "".join(pieces), spans


def _record(position: int, token: str, part: str, said: dict[str, Any] | None) -> TokenReading:
    if said is None:
        return TokenReading(position, token, part)
    label = said.get("trust") or {}
    return TokenReading(
        position,
        token,
        part,
        explanation=said["text"],
        norm=float(said["norm"]),
        cosine=label.get("cosine"),
        fve=label.get("fve"),
        grade=label.get("grade"),
        trust=label.get("line"),
        warnings=tuple(said["warnings"]),
        error=said["error"],
    )


def _name(model: str) -> str:
    """A model's name as others know it: of a local folder, its last part."""
    return Path(model).name if Path(model).is_dir() else model
