"""Make a `Reading`: one forward pass reads every position, one batch explains them.

The text is tokenized once and runs as token ids, so the tokens shown are the tokens that were read,
at their real positions, whatever the padding. With `generate`, the model first writes its reply,
then prompt and reply are read together::

    tokens  →  [ reply ]  →  residuals at block K  →  handle  →  records

Each of several prompts has its own forward pass, because padding would change its residuals in the
last digits; their explanations are generated together.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import torch

from ..checkpoint.origin import Claims
from ..core.numeric import has_values, is_int
from ..errors import InjectionError, NLAError, shown
from ..explanation.asked import check_single
from ..models import bridge, hosts, weights
from ..models import target as targets
from ..models.generation import greedy
from ..models.head import head_envoy
from ..models.prompts import several
from .characters import whole
from .code import call
from .records import Reading, TokenReading

if TYPE_CHECKING:
    from nnsight.modeling.transformers import TransformersModel

    from ..core.sampling import Sampling
    from ..explanation.handle import Explanation
    from ..explanation.protocols import Explains, Target
    from ..models.hosts import Positions

_NEXT, _SHOWN_NEXT, _MOST_LOGITS = 3, 5, 512
"""How many of the target's next tokens a label checks, how many a record has, and at how many
positions at most they are read."""
Which = Literal["all", "reply"] | int | slice | Sequence[int]
"""The positions to read; negative ones count from the end."""
Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]] | torch.Tensor
"""A text, token ids (a tensor of one row too), or chat messages."""
Prompts = Sequence[Prompt]
"""Several prompts, not necessarily of one form."""
TEMPLATE = "template"
_SEVERAL = "Pass a list of prompts without padding: nla.read(model, [first, second])."
_PLACES = (
    "expected 'all', 'reply' (with generate=N, if the model writes at least one token), an index, "
    "several ([0, 3, -1]), or a slice."
)


class Next(TypedDict):
    """The target's likeliest next tokens after a position."""

    next_tokens: tuple[str, ...]
    next_probabilities: tuple[float, ...]


class ReadOptions(TypedDict, total=False):
    """The options of `NLA.read`."""

    positions: Which
    generate: int | None
    layer: int | None
    claims: Claims
    remote: bool
    sampling: Sampling | None
    upto: Literal["line"] | int | None
    question: str | None
    choices: Sequence[str] | None


@dataclass(frozen=True)
class _Text:
    """A prompt, and the model's reply if there is one, as they are read."""

    prompt: Any
    span: Positions
    prompt_length: int
    wanted: list[int]
    """The positions to read, from the left."""
    context: int | None
    """The length that the target was built for, if the text goes past it."""


def read(
    nla: Explains,
    model: Target,
    prompt: Any,
    *,
    positions: Which = "all",
    generate: int | None = None,
    layer: int | None = None,
    claims: Claims = "check",
    remote: bool = False,
    sampling: Sampling | None = None,
) -> Reading | list[Reading]:
    """Explain every token of a prompt, or of each of a list, and of the replies: `NLA.read`."""
    check_single(nla.checkpoint, "read")
    envoy = nla.layer(model, layer, claims=claims)  # Refuses a model that does not fit.
    block = None if layer is None else envoy
    if bridge.is_bridge(model):
        bridge.check_here(remote=remote)
    if not remote:
        weights.load(model)
    new_tokens = None if generate is None else _checked_length(generate)
    listed = several(prompt)
    prompts = [prompt] if listed is None else listed
    spans: list[Positions] = []
    for number, each in enumerate(prompts):
        with _numbered(None if listed is None else number):
            spans.append(tokenized(model, each, advice=_SEVERAL))
    texts: list[_Text] = []
    for number, (each, span) in enumerate(zip(prompts, spans, strict=True)):
        with _numbered(None if listed is None else number):
            texts.append(_text(model, each, span, positions, new_tokens, remote))
    options: dict[str, Any] = {"sampling": sampling, "layer": layer, "claims": claims}
    captured = [_captured(nla, model, block, text, options, remote) for text in texts]
    nla.resolve([handle for handle, _ in captured])
    read_at = nla.checkpoint.layer if layer is None else layer
    asked = getattr(nla, "question", None) or {}
    made = {"positions": positions, "generate": generate, "layer": layer, "claims": claims}
    made |= {"question": asked.get("questions"), "choices": asked.get("choices")}
    names = hosts.short_name(targets.describe(model)), verbalizer_name(nla.av)
    readings = [
        Reading(
            _records(model, text, handle, following),
            *names,
            read_at,
            _receipt(handle),
            call(text.prompt, made, handle.capture.sampling),
        )
        for text, (handle, following) in zip(texts, captured, strict=True)
    ]
    return readings[0] if listed is None else readings


@contextmanager
def _numbered(number: int | None) -> Generator[None, None, None]:
    """Let the errors of one of several prompts say which one it is."""
    try:
        yield
    except NLAError as error:
        if number is None:
            raise
        raise type(error)(f"prompts[{number}]: {error}") from error


def tokenized(model: Target, prompt: Any, *, advice: str = targets.FLAT) -> Positions:
    """Return the tokens of one prompt, which has some; see `targets.tokenized`.

    Raises:
        NLAError: It is not one prompt, or it has no tokens.
    """
    span = targets.tokenized(model, prompt, advice=advice)
    if not span.ids:
        raise NLAError(f"The prompt {prompt!r} has no tokens; there is nothing to read.")
    return span


def _text(
    model: Target,
    prompt: Any,
    span: Positions,
    positions: Which,
    new_tokens: int | None,
    remote: bool,
) -> _Text:
    """Let the model reply if it is to, and find the positions to read."""
    count = len(span.ids)
    if new_tokens is not None:
        span = _with_reply(model, span, new_tokens, remote)
    context = targets.check_length(model, len(span.ids), stacklevel=4)
    return _Text(prompt, span, count, _wanted(positions, len(span.ids), count), context)


def _captured(
    nla: Explains,
    model: Target,
    block: Any,
    text: _Text,
    options: Mapping[str, Any],
    remote: bool,
) -> tuple[Explanation, list[Next]]:
    """Run the target on one text, and capture the residuals at its wanted positions."""
    span, wanted = text.span, text.wanted
    tokens = [span.tokens[at] for at in wanted]
    placed: dict[str, Any] = {"tokens": tokens, "positions": wanted, **options}
    if bridge.is_bridge(model):
        layer = options["layer"]
        read_at = nla.checkpoint.layer if layer is None else layer
        return nla.explain(bridge.residual(model, span.ids, read_at)[wanted], **placed), []
    return _traced(nla, model, block, span, wanted, placed, remote)


def _records(
    model: Target, text: _Text, handle: Explanation, following: list[Next]
) -> tuple[TokenReading, ...]:
    # A record keeps its label, so a label that cannot be measured is an error.
    labels = dict(zip(text.wanted, handle.trust or [], strict=False))
    after = dict(zip(text.wanted, following, strict=False))
    span, count = text.span, text.prompt_length
    tokenizer: Any = model.tokenizer
    parts = parts_of(tokenizer, span.ids[:count], messages_of(text.prompt))
    special = set(tokenizer.all_special_ids)
    parts += [TEMPLATE if token in special else "reply" for token in span.ids[count:]]
    explained = dict(zip(text.wanted, handle.to_dict()["explanations"], strict=True))
    if text.context is not None:
        for position in text.wanted:
            if position >= text.context:
                said = f"position {position}: the target was built for {text.context} tokens"
                explained[position]["warnings"].append(said)
    groups = whole(tokenizer, span.ids, span.tokens)
    return tuple(
        replace(
            token_record(position, token, part, explained.get(position), labels.get(position)),
            whole=group,
            **after.get(position, {}),
        )
        for position, (token, part, group) in enumerate(
            zip(span.tokens, parts, groups, strict=True)
        )
    )


def _traced(
    nla: Explains,
    model: TransformersModel,
    block: Any,
    span: Positions,
    wanted: list[int],
    options: dict[str, Any],
    remote: bool,
) -> tuple[Explanation, list[Next]]:
    ids = torch.tensor([span.ids], device="cpu")
    head = head_of(model) if len(wanted) <= _MOST_LOGITS else None
    if head is None:
        with torch.no_grad(), model.trace(ids, remote=remote) as tracer:
            residual = (nla.layer(model) if block is None else block).output[0]
            handle = nla.explain(residual[wanted], **options)
            tracer.stop()
        return handle, []
    with torch.no_grad(), model.trace(ids, remote=remote):
        residual = (nla.layer(model) if block is None else block).output[0]
        handle = nla.explain(residual[wanted], **options)
        head.input = head.input[:, wanted]
        logits = model.output.logits[0].float()
        likeliest = logits.topk(_SHOWN_NEXT)
        found = likeliest.indices.cpu().save()
        shares = (likeliest.values - logits.logsumexp(-1, keepdim=True)).exp().cpu().save()
    following: list[Next] = [
        {
            "next_tokens": tuple(hosts.spelled(model.tokenizer, row).tokens),
            "next_probabilities": tuple(share),
        }
        for row, share in zip(found.tolist(), shares.tolist(), strict=True)
    ]
    handle.capture.next_tokens = [each["next_tokens"][:_NEXT] for each in following]
    return handle, following


def head_of(model: TransformersModel) -> Any:
    """Return the envoy of the head; ``None`` where the target's next tokens cannot be read."""
    try:
        return head_envoy(model)
    except InjectionError:
        return None


def _with_reply(model: Target, span: Positions, new_tokens: int, remote: bool) -> Positions:
    """Return the prompt's tokens followed by the model's greedy reply."""
    if bridge.is_bridge(model):
        return hosts.spelled(model.tokenizer, bridge.continued(model, span.ids, new_tokens))
    ids = torch.tensor([span.ids], device="cpu")
    settings = greedy(model, model.tokenizer, new_tokens)
    with (
        torch.no_grad(),
        model.generate(ids, remote=remote, generation_config=settings) as tracer,
    ):
        written = tracer.result.cpu().save()
    return hosts.spelled(model.tokenizer, written[0].tolist())


def _checked_length(generate: object) -> int:
    if isinstance(generate, bool) or not isinstance(generate, int) or generate < 1:
        raise NLAError(
            f"generate={shown(generate)}: expected the longest reply in tokens, a whole number "
            "from 1."
        )
    return generate


def _wanted(positions: Which, length: int, prompt_length: int) -> list[int]:
    """Return the positions to read, counted from the left, each once and in order."""
    every = range(length)
    if isinstance(positions, str):
        if positions == "all":
            return list(every)
        if positions == "reply" and prompt_length < length:
            return list(every[prompt_length:])
        last = " The last token is positions=-1." if positions == "last" else ""
        raise NLAError(f"positions={shown(positions)}: {_PLACES}{last}")
    try:
        if isinstance(positions, slice):
            selected = list(every[positions])
        else:
            given: Any = positions
            given = given.tolist() if hasattr(given, "tolist") and has_values(given) else given
            listed: list[Any] = (
                list(given) if isinstance(given, list | tuple | range | set) else [given]
            )
            if not all(map(is_int, listed)):
                raise TypeError
            selected = [every[position] for position in listed]
    except TypeError as error:
        raise NLAError(f"positions={shown(positions)}: {_PLACES}") from error
    except IndexError as error:
        raise NLAError(
            f"positions={shown(positions)}: the text has {length} tokens, 0 to {length - 1}."
        ) from error
    if not selected:
        raise NLAError(f"positions={shown(positions)} selects none of the text's {length} tokens.")
    return sorted(set(selected))


def messages_of(prompt: Any) -> list[dict[str, Any]]:
    """Return the messages of a prompt that was checked; none if it is no chat."""
    while isinstance(prompt, list | tuple) and isinstance(prompt[0], list | tuple):
        prompt = prompt[0]
    chat = isinstance(prompt, list | tuple) and isinstance(prompt[0], Mapping)
    return list(prompt) if chat else []


def parts_of(tokenizer: Any, ids: Sequence[int], messages: list[dict[str, Any]]) -> list[str]:
    """Return for each token whose text it belongs to: a chat role, the prompt, or the template."""
    special = set(tokenizer.all_special_ids)
    if not messages:
        return [TEMPLATE if token in special else "prompt" for token in ids]
    text, spans = _token_spans(tokenizer, ids)
    parts, cursor = [TEMPLATE] * len(ids), 0
    for message in messages:
        for content in _contents(message):
            start = text.find(content, cursor)
            if start < 0:  # The template rewrote it.
                continue
            cursor = start + len(content)
            for position, (first, last) in enumerate(spans):
                if first < cursor and last > start and ids[position] not in special:
                    parts[position] = str(message.get("role", "prompt"))
    return parts


def _contents(message: dict[str, Any]) -> list[str]:
    """Return the texts of one chat message, as a template may print them."""
    content = message.get("content")
    pieces: list[Any] = content if isinstance(content, list) else [{"text": content}]
    texts = [piece.get("text") for piece in pieces if isinstance(piece, dict)]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def _token_spans(tokenizer: Any, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of `ids`, and where in it each token starts and ends."""
    text = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if getattr(tokenizer, "is_fast", False):
        again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        if list(again["input_ids"]) == list(ids):
            return text, [tuple(span) for span in again["offset_mapping"]]
    pieces = [tokenizer.decode([token]) for token in ids]
    ends = list(accumulate(map(len, pieces)))
    return "".join(pieces), list(zip([0, *ends], ends, strict=False))


def _receipt(handle: Explanation) -> tuple[tuple[str, str], ...]:
    """Return what is the same for every position: it holds where a vector has no text, too."""
    return tuple(handle.capture.queue.receipt(handle.capture).facts().items())


def token_record(
    position: int, token: str, part: str, explained: dict[str, Any] | None, label: Any = None
) -> TokenReading:
    """Return the record of a token, from its explanation as a handle's `to_dict` has it."""
    if explained is None:
        return TokenReading(position, token, part)
    line = explained["trust"]
    return TokenReading(
        position,
        token,
        part,
        explanation=explained["text"],
        norm=explained["norm"],
        reconstruction_cosine=explained["reconstruction_cosine"],
        fve=explained["fve"],
        grade=explained["grade"],
        trust=None if line is None else str(line),
        warnings=tuple(explained["warnings"]),
        error=explained["error"],
        grounded=explained["grounded"],
        against=getattr(label, "against", None),
        denominator=getattr(label, "denominator", None),
    )


def verbalizer_name(av: TransformersModel) -> str:
    """Return a verbalizer's short name; of an adapter, with the name of the model below it."""
    adapter, base = hosts.adapter_of(av), hosts.short_name(hosts.describe(av))
    return base if adapter is None else f"{hosts.short_name(adapter)} on {base}"
