"""Metrics: one number per run, from the logits at the last position.

An answer is one token, spelled as in the tokenizer: in most vocabularies, a word within a text
starts with a space, ``" French"``. An answer of several tokens raises an error that lists the
pieces::

    logit_difference(" French", " Italian")     # in logits; positive if the first is preferred
    probability(" French")                      # 0 to 1
    kl("clean")                                 # in nats, from the clean run's distribution

You can also pass any function of the logits: it gets ``[rows, vocab]`` and returns one number per
row. The first two metrics need only a few columns of the logits, and only those are copied from the
model (or sent back by a host).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ExperimentError, shown
from ..storage.function_hash import hash_function

if TYPE_CHECKING:
    from jaxtyping import Float

Answer = str | int
"""A token: as text, or as an id."""


@dataclass(frozen=True)
class LogitDifference:
    """The logit of `a` minus the logit of `b`."""

    a: Answer
    b: Answer


@dataclass(frozen=True)
class Probability:
    """The probability of `token`."""

    token: Answer


@dataclass(frozen=True)
class Divergence:
    """The Kullback-Leibler divergence from a reference distribution to the run's, in nats."""

    reference: str | Tensor


Metric = LogitDifference | Probability | Divergence | Callable[[Tensor], Any]
"""``metric=`` of an experiment."""


def logit_difference(a: Answer, b: Answer) -> LogitDifference:
    """Measure the logit of one answer minus that of another, at the last position.

    Args:
        a: The answer that counts as positive: a single token, as text or as an id.
        b: The answer that it is compared with.
    """
    return LogitDifference(a, b)


def probability(token: Answer) -> Probability:
    """Measure the probability of one answer at the last position.

    Args:
        token: A single token, as text or as an id.
    """
    return Probability(token)


def kl(reference: str | Tensor) -> Divergence:
    """Measure the divergence of the next token's distribution: KL(reference ‖ run), in nats.

    Args:
        reference: The name of a run of the experiment (``"clean"``, or ``"corrupt"`` when
            patching), or the reference's own logits, ``[vocab]``.

    Raises:
        ExperimentError: `reference` is something else.
    """
    named = isinstance(reference, str) and reference in ("clean", "corrupt")
    if not named and not (isinstance(reference, Tensor) and reference.ndim == 1):
        got = list(reference.shape) if isinstance(reference, Tensor) else repr(reference)
        raise ExperimentError(
            f'kl({got}): expected "clean", "corrupt", or the reference\'s logits of shape [vocab].'
        )
    return Divergence(reference)


@dataclass(frozen=True)
class Measure:
    """A metric bound to a tokenizer: the logits that it needs, and a number per row from them."""

    name: str
    """The metric in words, for tables and axes."""
    columns: tuple[int, ...] | None
    """The token ids whose logits are needed; ``None`` where all are."""
    metric: Metric
    """The metric as it was given."""
    runs: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The logits ``[vocab]`` of the runs that a divergence may refer to by name."""

    @property
    def identity(self) -> str:
        """A hash of what is measured: of a function's code and what it reads, of given logits."""
        metric = self.metric
        if isinstance(metric, LogitDifference | Probability):
            return f"{type(metric).__name__} of tokens {self.columns}"
        if isinstance(metric, Divergence) and isinstance(metric.reference, str):
            return self.name
        given = partial(kl, metric.reference) if isinstance(metric, Divergence) else metric
        return hash_function(given, stateful=False)

    def __call__(self, answers: Float[Tensor, "rows columns"]) -> list[float | None]:
        """Return the metric of each row; ``None`` where it is not finite.

        Args:
            answers: Logits at the last position: those of `columns` followed by the log of the
                normaliser (logsumexp over the vocabulary), or of the whole vocabulary.
        """
        metric, answers = self.metric, answers.float()
        if isinstance(metric, LogitDifference):
            values = answers[:, 0] - answers[:, 1]
        elif isinstance(metric, Probability):
            values = (answers[:, 0] - answers[:, 1]).exp()
        elif isinstance(metric, Divergence):
            values = _divergence(self._reference(metric.reference), answers)
        else:
            values = _called(metric, answers)
        numbers: list[float] = values.double().tolist()
        return [number if math.isfinite(number) else None for number in numbers]

    def _reference(self, named: str | Tensor) -> Tensor:
        if isinstance(named, Tensor):
            return named
        if named not in self.runs:
            raise ExperimentError(
                f"kl({named!r}): this experiment has the runs {sorted(self.runs)}; name one of "
                "them, or pass the reference's logits."
            )
        return self.runs[named]


def bind(metric: Any, tokenizer: Any) -> Measure:
    """Check a metric against the model's tokenizer.

    Args:
        metric: One of this module's, or a function of the logits.
        tokenizer: The target's.

    Raises:
        ExperimentError: It is not a metric, or an answer is not one token.
    """
    if isinstance(metric, LogitDifference):
        a, b = token_id(metric.a, tokenizer), token_id(metric.b, tokenizer)
        if a == b:
            raise ExperimentError(
                f"logit_difference({metric.a!r}, {metric.b!r}): both are token {a}, so it is "
                "always 0. Give two different answers."
            )
        return Measure(f"logit({metric.a!r}) − logit({metric.b!r})", (a, b), metric)
    if isinstance(metric, Probability):
        return Measure(f"p({metric.token!r})", (token_id(metric.token, tokenizer),), metric)
    if isinstance(metric, Divergence):
        given = metric.reference
        name = f"the {given} run" if isinstance(given, str) else "the given logits"
        return Measure(f"KL from {name}, nats", None, metric)
    if callable(metric):
        return Measure(str(getattr(metric, "__name__", type(metric).__name__)), None, metric)
    raise ExperimentError(
        f"metric={shown(metric)}: expected logit_difference(a, b), probability(token), "
        "kl(reference), or a function from logits [rows, vocab] to one number per row."
    )


def token_id(answer: Any, tokenizer: Any) -> int:
    """Return the id of an answer that is a single token, taken as it is written.

    Raises:
        ExperimentError: It is several tokens, none, or not in this vocabulary.
    """
    if isinstance(answer, int) and not isinstance(answer, bool):
        if not 0 <= answer < len(tokenizer):
            raise ExperimentError(
                f"Token id {answer}: this vocabulary has the ids 0 to {len(tokenizer) - 1}."
            )
        return answer
    if not isinstance(answer, str):
        raise ExperimentError(
            f"{answer!r} is not an answer: give a single token, as text or as its id."
        )
    ids: list[int] = tokenizer.encode(answer, add_special_tokens=False)
    if len(ids) == 1:
        return ids[0]
    pieces = [tokenizer.decode([each]) for each in ids]
    other = answer[1:] if answer.startswith(" ") else f" {answer}"
    single = bool(other) and len(tokenizer.encode(other, add_special_tokens=False)) == 1
    raise ExperimentError(
        f"{answer!r} is {len(ids)} tokens for this model: {pieces}. A metric reads one position, "
        "so an answer has to be one token"
        + (f"; {other!r} is one." if single else ". Choose another answer, or pass a token's id.")
    )


def _divergence(reference: Tensor, logits: Tensor) -> Tensor:
    if reference.shape[-1] != logits.shape[-1]:
        raise ExperimentError(
            f"kl(): the reference has {reference.shape[-1]} logits, the model "
            f"{logits.shape[-1]}. Take both from one model."
        )
    wanted = reference.to(logits.device).float().log_softmax(dim=-1)
    found = logits.log_softmax(dim=-1)
    # An impossible token adds nothing (0 · log 0 = 0), where -inf − -inf would make it NaN.
    terms = torch.where(wanted.isneginf(), 0.0, wanted.exp() * (wanted - found))
    return terms.sum(dim=-1).clamp_min(0)


def _called(metric: Callable[[Tensor], Any], logits: Tensor) -> Tensor:
    rows, given = len(logits), metric(logits)
    try:
        values = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ExperimentError(
            f"The metric returned {type(given).__name__}; expected one number per row, [{rows}]."
        ) from error
    if values.shape != (rows,):
        raise ExperimentError(
            f"The metric returned shape {list(values.shape)} for logits of shape "
            f"{list(logits.shape)}; expected one number per row, [{rows}]. Index the last axis: "
            "lambda logits: logits[..., token]."
        )
    return values.detach().cpu()
