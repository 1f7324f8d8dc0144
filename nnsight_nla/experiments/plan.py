"""Turn the arguments of an experiment into the plan of its sweep.

`patch`, `ablate` and `steer` take the same `Options` by keyword, in addition to their own. `Setup`
checks them against the model and the prompt that is intervened on, and runs prompts without an
intervention; its `Setup.plan` lists the writes, for `grid` to run.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

from torch import Tensor

from ..errors import ExperimentError, shown
from ..explanation.asked import check_question, check_single
from .forward import Action, Found, Site, Target, find_sites
from .metrics import Measure, Metric, bind
from .model_interface import SiteName
from .positions import ExplainAt, Positions, explained, listed
from .records import Cell, Explained, Header, Outcome
from .sweep import Sweep

if TYPE_CHECKING:
    from jaxtyping import Float

    from ..explanation import protocols
    from ..models import hosts

Key = tuple[int, int | None]
"""A layer and a head, ``None`` where the site is not a head."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


class RequiredOptions(TypedDict):
    """The options without a default; see `Options`."""

    layers: int | Sequence[int] | Literal["all"]
    positions: Positions | Literal["every"]
    metric: Metric


class Options(RequiredOptions, total=False):
    """The keyword arguments that all experiments take.

    Args:
        layers: A block, a list of them (counted from 0), or ``"all"``.
        positions: The positions to write at, one cell for each: one, a list, or ``"all"``. `ablate`
            and `steer` also take ``"every"``: all positions at once, in one cell. For `patch` they
            are positions of the corrupt prompt; if the prompts differ in length, pass
            ``"aligned"`` or pairs ``(clean, corrupt)``.
        metric: One number per run: `logit_difference`, `probability`, `kl`, or any function of the
            last position's logits. ``kl("clean")`` compares with the clean run without
            intervention.
        explain_at: The position whose residual at block K is explained, in the prompt that is
            intervened on; ``"patched"`` (the position of the cell); or a list of these.
        site: ``"residual"``, ``"attention"``, ``"mlp"`` or ``"head"``.
        heads: For ``site="head"``: a head or a list of them; by default all.
        batch_size: The number of cells in one forward pass.
        resume: A partial `Sweep` of this same call, or the path of a stored one.
        remote: Run the target on the configured NDIF host.
        question: For an oracle: the question about the residual, in place of an explanation.
        choices: For an oracle: the answers to choose from; see `NLA.ask`.
    """

    explain_at: ExplainAt
    site: SiteName
    heads: int | Sequence[int] | None
    batch_size: int
    resume: Sweep | str | Path | None
    remote: bool
    question: str | None
    choices: Sequence[str] | None


_DEFAULTS: dict[str, Any] = {
    "explain_at": -1,
    "site": "residual",
    "heads": None,
    "batch_size": 64,
    "resume": None,
    "remote": False,
    "question": None,
    "choices": None,
}


def takes_options(experiment: _Function) -> _Function:
    """Show each of the `Options` in the signature and the help of an experiment."""
    signature = inspect.signature(experiment)
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS.get(name, inspect.Parameter.empty),
            annotation=kind.__forward_arg__,
        )
        for name, kind in Options.__annotations__.items()
    ]
    cast("Any", experiment).__signature__ = signature.replace(parameters=[*own, *options])
    described = (Options.__doc__ or "").partition("Args:\n")[2].strip()
    experiment.__doc__ = (experiment.__doc__ or "").replace("options: See `Options`.", described)
    return experiment


@dataclass(frozen=True)
class Untouched:
    """A run without an intervention."""

    prompt: hosts.Positions
    """Its ids and tokens."""
    found: Found
    """Its results."""
    at: Mapping[int, int]
    """The explained positions of the prompt that is intervened on, to those in this prompt."""


@dataclass(frozen=True)
class Setup:
    """The checked options of an experiment, with the model and the prompt they belong to."""

    experiment: str
    """``patch``, ``ablate`` or ``steer``."""
    nla: protocols.ExplainsAndReconstructs
    """Explains the residuals."""
    target: Target
    """The model, and where it runs."""
    prompt: hosts.Positions
    """The ids and tokens of the prompt that is intervened on."""
    measure: Measure
    """The metric."""
    explained: Explained
    """The positions whose residuals are explained."""
    sites: Mapping[Key, Site]
    """The sites that are written, by layer and head."""
    positions: Any
    """``positions=`` as it was given."""
    batch_size: int
    """Cells in one forward pass."""
    resume: Any
    """``resume=`` as it was given."""

    @staticmethod
    def of(
        experiment: Callable[..., Sweep],
        model: protocols.Target,
        nla: protocols.ExplainsAndReconstructs,
        prompt: Any,
        options: Options,
    ) -> Setup:
        """Check the options.

        Args:
            experiment: The function that the user called.
            model: The target.
            nla: Its NLA.
            prompt: The prompt that is intervened on.
            options: The keyword arguments that the user passed.

        Raises:
            TypeError: An option is not known, or a required one is missing.
            ExperimentError: An option does not fit.
            InjectionError: The model shows no such site, or is not the verbalizer's.
        """
        _check_names(experiment, options)
        given: dict[str, Any] = {**_DEFAULTS, **options}
        size = given["batch_size"]
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ExperimentError(f"batch_size={shown(size)}: expected a whole number from 1.")
        check_question(given["question"], given["choices"])
        if given["question"] is not None:
            nla = nla.asking(given["question"], choices=given["choices"])
        target = Target.of(model, nla, remote=given["remote"])
        check_single(nla.checkpoint, experiment.__name__)
        text = target.model.positions(prompt)
        return Setup(
            experiment.__name__,
            nla,
            target,
            text,
            bind(given["metric"], target.model.tokenizer),
            explained(given["explain_at"], len(text.ids)),
            find_sites(target.model, given["site"], given["layers"], given["heads"]),
            given["positions"],
            size,
            given["resume"],
        )

    @property
    def width(self) -> int:
        """The width of every site."""
        return next(iter(self.sites.values())).width

    def vector(self, given: Any, name: str) -> Float[Tensor, " width"]:
        """Return a vector that the user gave as an ordinary float32 tensor on the CPU.

        Args:
            given: Any tensor, or what ``nla.direction`` returns.
            name: The argument's name.

        Raises:
            ExperimentError: It is not a vector of the sites' width, or zero, NaN or infinite.
        """
        if not isinstance(given, Tensor) or tuple(given.shape) != (self.width,):
            got = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ExperimentError(f"{name} is {got}: expected a tensor of shape [{self.width}].")
        values = given.detach().as_subclass(Tensor).float().cpu().clone()
        if not bool(values.isfinite().all()) or not bool(values.any()):
            raise ExperimentError(f"{name} is zero, NaN or infinite: it has no direction.")
        return values

    def cells(self, kinds: Iterable[tuple[str, float | None]]) -> list[Cell]:
        """Return a cell for each site, position and (kind, dose), in one prompt.

        Raises:
            ExperimentError: ``positions=`` does not fit.
        """
        every = isinstance(self.positions, str) and self.positions == "every"
        at = [None] if every else listed(self.positions, len(self.prompt.ids), also=("every",))
        return [
            Cell(site.name, site.layer, site.head, position, kind=kind, dose=dose)
            for site, position, (kind, dose) in itertools.product(
                self.sites.values(), at, list(kinds)
            )
        ]

    def explained_by(self, cells: Sequence[Cell]) -> list[int]:
        """Return the positions that are explained for one of the cells at least."""
        return list(dict.fromkeys(at for cell in cells for at in self.explained.of(cell)))

    def untouched(
        self, prompt: hosts.Positions, at: Mapping[int, int], *, collect: bool = False
    ) -> Untouched:
        """Run a prompt without an intervention.

        Args:
            prompt: Its ids and tokens.
            at: The positions to explain; see `Untouched`.
            collect: Whether to keep the values of the sites.
        """
        sites, read = self.sites if collect else None, [(0, place) for place in at.values()]
        found = self.target.run([prompt.ids], self.measure, collect=sites, read=read)
        return Untouched(prompt, found, at)

    def plan(
        self,
        runs: Mapping[str, Untouched],
        cells: Sequence[Cell],
        action: Action,
        vector: Callable[[Cell, int], Tensor],
        *,
        settings: Mapping[str, Any] | None = None,
        idle: Iterable[Cell] = (),
    ) -> Plan:
        """Make the plan.

        Args:
            runs: The runs without an intervention, by name.
            cells: The interventions.
            action: The same for all of them.
            vector: Returns what is written for a cell at a position.
            settings: Everything else that the values depend on.
            idle: Cells that write what is there already.
        """
        measure, model = self.measure, self.target.model
        if measure.columns is None:
            logits = {name: run.found.answers[0] for name, run in runs.items()}
            measure = replace(measure, runs=logits)
        outcomes: dict[str, Outcome] = {}
        for name, run in runs.items():
            vectors = () if run.found.residuals is None else run.found.residuals
            outcomes[name] = Outcome(
                measure(run.found.answers)[0],
                model.tokenizer.decode([run.found.top[0]]),
                dict(zip(run.at, vectors, strict=True)),
            )
        header = Header(
            self.experiment,
            model.name,
            self.target.k,
            measure.name,
            {name: run.prompt.tokens for name, run in runs.items()},
            self.explained.positions,
            self.explained.own,
            settings or {},
        )
        return Plan(self, header, measure, outcomes, cells, action, vector, frozenset(idle))


@dataclass(frozen=True)
class Plan:
    """All that a sweep is going to do."""

    setup: Setup
    """The model, the prompt and the options."""
    header: Header
    """The table's account of the call."""
    measure: Measure
    """The metric, with the runs that a divergence refers to."""
    runs: Mapping[str, Outcome]
    """The runs without an intervention, by name."""
    cells: Sequence[Cell]
    """The interventions."""
    action: Action
    """The same for all of them."""
    vector: Callable[[Cell, int], Float[Tensor, " width"]]
    """Returns what is written for a cell at a position."""
    idle: frozenset[Cell]
    """Cells that write what is there already: their residuals are the untouched run's."""


def digest(vector: Float[Tensor, " width"]) -> str:
    """Return a name for a vector, by which a resumed sweep is known to be the same."""
    return hashlib.blake2b(vector.contiguous().numpy().tobytes(), digest_size=8).hexdigest()


def _check_names(experiment: Callable[..., Sweep], options: Mapping[str, Any]) -> None:
    name = experiment.__name__
    unknown = [repr(each) for each in options if each not in Options.__annotations__]
    if unknown:
        parameters = inspect.signature(experiment).parameters.values()
        valid = ", ".join(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)
        raise TypeError(
            f"{name}() got an unexpected keyword argument {', '.join(unknown)}. Its options are "
            f"{valid}."
        )
    missing = [repr(each) for each in RequiredOptions.__annotations__ if each not in options]
    if missing:
        raise TypeError(f"{name}() is missing required keyword arguments: {', '.join(missing)}.")
