"""Runs of the target: a prompt, its residuals, and what of it was explained so far.

One forward pass keeps the residual of every token at block K, so that a token that is clicked later
needs the verbalizer only. A run may have an intervention: values that are written into it::

    run = runner.open("The Eiffel Tower is in the city of")
    patched = runner.patched(run, source=(run, 3), position=5, layer=2)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .. import view
from ..core.sampling import Sampling
from ..errors import InjectionError, NLAError
from ..experiments.edits import perform
from ..experiments.forward import Edit, Target, find_sites
from ..experiments.metrics import Measure, bind, kl
from ..explanation.handle import Explanation
from ..explanation.records import Capture
from ..models import bridge, hosts
from ..models import target as targets
from ..models.generation import greedy
from ..reading import read as reading
from ..reading.characters import whole
from ..reading.records import TokenReading

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation.protocols import ExplainsAndReconstructs

NEXT = 5
"""How many of the target's next tokens a card has."""
_MOST_LOGITS = 512
"""The most positions, from the last one back, whose next tokens are kept."""
_LONGEST_CONTINUATION = 20
_LOGITS = Measure("logits", None, kl("clean"))
"""Asks for all logits of the last position."""

Next = list[tuple[str, float]]
"""Tokens with their probabilities, the likeliest first."""


@dataclass(eq=False)
class Run:
    """One prompt at one layer, with or without an intervention."""

    number: int
    """Its number in the session."""
    prompt: int
    """The number of its prompt, which runs at several layers share; a patched run has its own."""
    given: Any
    """The prompt as it was given."""
    label: str
    """Its name on the page."""
    nla: ExplainsAndReconstructs
    """Explains its residuals."""
    name: str
    """The name of `nla` in code."""
    target: Target
    """The model, and where it runs."""
    span: hosts.Positions
    """The ids and tokens."""
    residuals: Float[Tensor, "seq d_model"]
    """The residuals at block K, float32, on the CPU."""
    last: Float[Tensor, " vocab"]
    """The logits at the last position, on the CPU."""
    following: Sequence[Next]
    """The target's likeliest next tokens at each position; empty where they are not known."""
    records: list[dict[str, Any]]
    """What the page shows of each token: a `TokenReading` as a mapping, and more where it was
    explained."""
    edits: tuple[Edit, ...] = ()
    """What is written into it."""
    before: tuple[str, ...] = ()
    """Lines of code that take the values that are written into it."""
    writes: tuple[tuple[int, str], ...] = ()
    """The block and the line of code of each write."""
    remote: bool = False
    """Whether it runs on a host."""
    captures: dict[int, Capture] = field(default_factory=dict[int, Capture])
    """The records of its explanations, by samples per token."""

    @property
    def layer(self) -> int:
        """The block that is read."""
        return self.target.k

    def code(self, layer: int, line: str) -> list[str]:
        """Return the lines of code that run it and do `line` at the output of a block."""
        writes = [each for at, each in sorted(self.writes) if at <= layer]
        start = "with torch.no_grad(), model" if writes else "with model"
        within = [f"    {each}" for each in (*writes, line)]
        where = ", remote=True" if self.remote else ""
        return [*self.before, f"{start}.trace({self.given!r}{where}):", *within]

    def capture(self, samples: int) -> Capture:
        """Return the records of explanations of all of its tokens, none of them generated yet.

        One capture for all tokens: they are each other's controls, as in a `Reading`.
        """
        if samples not in self.captures:
            handle = self.nla.explain(
                self.residuals,
                tokens=list(self.span.tokens),
                positions=list(self.span.positions),
                samples=samples,
                sampling=drawing(self.nla.sampling, samples),
            )
            if any(self.following):
                named = [tuple(token for token, _ in each[:3]) for each in self.following]
                handle.capture.next_tokens = named
            self.captures[samples] = handle.capture
        return self.captures[samples]

    def handle(self, positions: Sequence[int], samples: int = 1) -> Explanation:
        """Return a handle on the explanations of some of its tokens."""
        return Explanation(self.capture(samples), np.array(positions, dtype=np.int64))

    def side(self) -> dict[str, Any]:
        """Return what the page shows of this run."""
        about = {
            "label": self.label,
            "target": hosts.short_name(self.target.model.name),
            "verbalizer": reading.verbalizer_name(self.nla.av),
            "layer": self.layer,
        }
        patched = {"cell": self.edits[-1].position} if self.edits else {}
        return {**view.side({**about, "records": self.records}), **patched}

    def edited(self, edit: Edit) -> tuple[Edit, ...]:
        """Return what is written into it, with one more, which replaces one at its place."""
        place = edit.site.layer, edit.position
        return (
            *(each for each in self.edits if (each.site.layer, each.position) != place),
            edit,
        )

    def check(self, position: object) -> int:
        """Return a position of this run.

        Raises:
            NLAError: It has no such position.
        """
        if isinstance(position, bool) or not isinstance(position, int):
            raise NLAError(f"position {position!r}: expected a whole number.")
        if not 0 <= position < len(self.span.ids):
            raise NLAError(
                f"position {position}: the text has the positions 0 to {len(self.span.ids) - 1}."
            )
        return position


class Runner:
    """Runs prompts through one target, for the NLAs of one or several of its layers."""

    def __init__(
        self, model: Any, nlas: Sequence[ExplainsAndReconstructs], *, remote: bool = False
    ) -> None:
        """Check that every NLA reads the model; loads no weights.

        Raises:
            InjectionError: One of them does not.
            NLAError: There is none, or the model cannot run remotely.
        """
        if not nlas:
            raise NLAError("There is no NLA: pass one, or a list with one for each layer.")
        self.model, self.remote = model, remote
        several = len(nlas) > 1
        self._each = [
            (f"nlas[{index}]" if several else "nla", nla, Target.of(model, nla, remote=remote))
            for index, nla in enumerate(nlas)
        ]
        self._each.sort(key=lambda each: each[2].k)
        self._runs, self._prompts, self._texts = count(), count(), count(1)

    def open(self, prompt: Any) -> list[Run]:
        """Run a prompt; return a run for each layer.

        Raises:
            NLAError: `prompt` is not a prompt, or it is longer than the model's context.
        """
        span = self._span(prompt)
        parts = reading.parts_of(self.model.tokenizer, span.ids, reading.messages_of(prompt))
        groups = whole(self.model.tokenizer, span.ids, span.tokens)
        number, following = next(self._prompts), self._following(span.ids, [])
        label = f"text {next(self._texts)}"
        found: list[Run] = []
        for name, nla, target in self._each:
            residuals, last = self._residuals(target, span.ids, ())
            tokens = zip(span.tokens, parts, groups, strict=True)
            records = [
                _unread(TokenReading(position, token, part, whole=group))
                for position, (token, part, group) in enumerate(tokens)
            ]
            found.append(
                Run(
                    next(self._runs), number, prompt, label, nla, name, target, span, residuals,
                    last, following, records, remote=self.remote,
                )
            )  # fmt: skip
        return found

    def patched(self, run: Run, position: int, source: Run, at: int, layer: int) -> Run:
        """Return `run` with the residual of another run written into it.

        Args:
            run: The run that is written into.
            position: Where in it.
            source: The run that the residual is taken from.
            at: Where in it.
            layer: The block whose output is taken and written.

        Raises:
            NLAError: There is no such block.
        """
        (site,) = find_sites(run.target.model, "residual", layer).values()
        taken = source.target.run(
            [source.span.ids], _LOGITS, edits=source.edits, collect={"taken": site}
        )
        edit = Edit(0, position, site, taken.values["taken"][at])
        edits = run.edited(edit)
        residuals, last = self._residuals(run.target, run.span.ids, edits)
        following = self._following(run.span.ids, edits)
        origin = "" if source is run else f"{source.label} "
        block = "" if layer == run.layer else f" at block {layer}"
        number, place = next(self._runs), f"{run.name}.layer(model, {layer}, claims='ignore')"
        take = source.code(layer, f"value_{number} = {place}.output[0, {at}].clone().save()")
        write = (layer, f"{place}.output[0, {position}] = value_{number}")
        return replace(
            run,
            number=number,
            prompt=next(self._prompts),
            label=f"{run.label}, position {position} from {origin}position {at}{block}",
            residuals=residuals,
            last=last,
            following=following,
            records=[_unread(_bare(each)) for each in run.records],
            edits=edits,
            before=(*run.before, *take),
            writes=(*run.writes, write),
            captures={},
        )

    def continued(self, run: Run, edits: Sequence[Edit]) -> str | None:
        """Return the target's greedy continuation of a run; ``None`` for a bridge."""
        if bridge.is_bridge(self.model):
            return None
        ids, steps = torch.tensor([run.span.ids], device="cpu"), _steps(edits)
        settings = greedy(self.model, self.model.tokenizer, _LONGEST_CONTINUATION)
        with (
            torch.no_grad(),
            self.model.generate(ids, remote=self.remote, generation_config=settings) as tracer,
        ):
            perform(steps)
            written = tracer.result.cpu().save()
        new = written[0, len(run.span.ids) :].tolist()
        return self.model.tokenizer.decode(new, skip_special_tokens=True)

    def measured(self, run: Run, edits: Sequence[Edit]) -> tuple[float | None, Tensor]:
        """Run with these edits; return the divergence from `run`, in nats, and the logits."""
        measure = bind(kl(run.last), run.target.model.tokenizer)
        found = run.target.run([run.span.ids], measure, edits=edits)
        return measure(found.answers)[0], found.answers[0]

    def _span(self, prompt: Any) -> hosts.Positions:
        span = reading.tokenized(self.model, prompt)
        longest, _ = targets.kind(self.model).context(self.model)
        if longest is not None and len(span.ids) > longest:
            raise InjectionError(
                f"The text has {len(span.ids):,} tokens, and {targets.describe(self.model)} was "
                f"built for {longest:,}. Shorten the text."
            )
        return span

    def _residuals(
        self, target: Target, ids: Sequence[int], edits: Sequence[Edit]
    ) -> tuple[Tensor, Tensor]:
        read = [(0, position) for position in range(len(ids))]
        found = target.run([ids], _LOGITS, edits=edits, read=read)
        if found.residuals is None:  # It was asked for.
            raise NLAError("The forward pass returned no residuals.")
        return found.residuals, found.answers[0]

    def _following(self, ids: Sequence[int], edits: Sequence[Edit]) -> list[Next]:
        """Return the likeliest next tokens at each position, where they can be read."""
        known: list[Next] = [[] for _ in ids]
        head = None if bridge.is_bridge(self.model) else reading.head_of(self.model)
        if head is None:
            return known
        first = max(0, len(ids) - _MOST_LOGITS)
        rows, steps = torch.tensor([list(ids)], device="cpu"), _steps(edits)
        model = self.model  # A host is sent what the block names, and has no `Runner`.
        with torch.no_grad(), model.trace(rows, remote=self.remote):
            perform(steps)
            head.input = head.input[:, first:]
            logits = model.output.logits[0].float()
            top = logits.topk(NEXT)
            tokens = top.indices.cpu().save()
            shares = (top.values - logits.logsumexp(-1, keepdim=True)).exp().cpu().save()
        for place, (row, share) in enumerate(zip(tokens.tolist(), shares.tolist(), strict=True)):
            spelled = hosts.spelled(self.model.tokenizer, row).tokens
            known[first + place] = list(zip(spelled, share, strict=True))
        return known


def changed_next(
    tokenizer: Any, before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"]
) -> list[tuple[str, float, float]]:
    """Return the tokens that are likeliest before or after, with both probabilities."""
    old, new = before.float().softmax(-1), after.float().softmax(-1)
    ids = torch.maximum(old, new).topk(NEXT).indices.tolist()
    tokens = hosts.spelled(tokenizer, ids).tokens
    return [(token, old[i].item(), new[i].item()) for token, i in zip(tokens, ids, strict=True)]


def drawing(sampling: Sampling, samples: int) -> Sampling:
    """Return how several samples are drawn: at temperature 1, where the sampling is greedy."""
    return replace(sampling, temperature=1.0) if samples > 1 and sampling.greedy else sampling


def _steps(edits: Sequence[Edit]) -> list[Any]:
    """Return the steps that write these edits, in the order of the forward pass."""
    row = torch.zeros(1, dtype=torch.long, device="cpu")
    return [
        ("write", each.site.envoy, each.site.where, each.site.start, each.site.stop, row,
         torch.tensor([each.position], device="cpu"), each.vector[None])
        for each in sorted(edits, key=lambda each: each.site.order)
    ]  # fmt: skip


def _unread(token: TokenReading) -> dict[str, Any]:
    return {**asdict(token), "read": False}


def _bare(record: Mapping[str, Any]) -> TokenReading:
    given = (record["position"], record["token"], record["part"])
    return TokenReading(*given, whole=record["whole"])
