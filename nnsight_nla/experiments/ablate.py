"""Ablation: take a value away, and see what is lost from the output and from the explanation.

    ablate(model, nla, prompt, layers="all", positions=[2], metric=..., method="zero")
    ablate(..., method="mean", reference=prompts)           # the average value over prompts
    ablate(..., method="resample", reference=prompts)       # the value of a random one of them
    ablate(..., method="project", direction=vector)         # h − (h·u) u: one direction only

The zero vector is far from anything the model ever computes; a mean or a resampled value is
not, so an effect that only zero ablation shows says little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from ..models import hosts
from .alignment import Positions
from .errors import ExperimentError
from .grid import BATCH, work
from .metrics import Metric
from .reachability import Cell, ExplainAt
from .single_prompt import Key, Setting
from .sites import SiteName
from .sweep import Sweep
from .vectors import digest, plain

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformer_lens.model_bridge import TransformerBridge

Method = Literal["zero", "mean", "resample", "project"]
"""What takes the value's place."""
Over = Literal["position", "tokens"]
"""Which values of the reference prompts count."""


def ablate(
    model: TransformersModel | TransformerBridge,
    nla: Any,
    prompt: Any,
    *,
    layers: Any,
    positions: Positions | Literal["every"],
    metric: Metric,
    method: Method,
    reference: Sequence[Any] | None = None,
    over: Over = "position",
    direction: Tensor | None = None,
    explain_at: ExplainAt = -1,
    site: SiteName = "residual",
    heads: Any = None,
    seed: int = 0,
    batch_size: int = BATCH,
    resume: Any = None,
    remote: bool = False,
) -> Sweep:
    """Ablate one cell at a time.

    Args:
        model: The target, an nnsight model or a `TransformerBridge`.
        nla: Its NLA.
        prompt: The prompt (a string, token ids or chat messages).
        layers: A block, a list of them (counted from 0), or ``"all"``.
        positions: One, a list, ``"all"`` (a cell each), or ``"every"`` (all at once, in one cell).
        metric: See `metrics`; ``kl("clean")`` compares with the untouched run.
        method: What takes the value's place.
        reference: For ``"mean"`` and ``"resample"``: prompts.
        over: Which of the reference's values stand for position p: ``"position"``, those at p (the
            prompts have to be as long as `prompt`); ``"tokens"``, those at every token but a
            prompt's first, whose norm is often a hundred times the others'.
        direction: For ``"project"``: what is projected out, ``[width]``, of any length above 0.
        explain_at: Where the residual at block K is explained: a position, ``"patched"`` (the
            cell's own), or a list of these.
        site: ``"residual"``, ``"attention"``, ``"mlp"`` or ``"head"``; see `sites`.
        heads: For ``site="head"``: which; all unless given.
        seed: Which reference is drawn by ``"resample"``: one for each position, the same in all
            layers.
        batch_size: Cells in one forward pass.
        resume: A partial `Sweep` of this same call, or where one was stored.
        remote: Run the target on the configured NDIF host.

    Returns:
        The table; `effect` is the metric minus the untouched run's.

    Raises:
        ExperimentError: Something that was asked for does not fit.
        InjectionError: The model shows no such site, or is not the verbalizer's.
    """
    _check(method, reference, over, direction)
    setting = Setting.of(
        model,
        nla,
        prompt,
        layers=layers,
        positions=positions,
        metric=metric,
        explain_at=explain_at,
        site=site,
        heads=heads,
        remote=remote,
    )
    length = len(setting.text.ids)
    settings: dict[str, Any] = {"method": method}
    if method == "project":
        unit = plain(direction, setting.width, "direction")
        unit = unit / unit.norm()
        settings["direction"] = digest(unit)
        written = {key: [unit] * length for key in setting.sites}
    elif method == "zero":
        written = {key: [torch.zeros(setting.width)] * length for key in setting.sites}
    else:
        known = [setting.target.tokens(each) for each in reference or ()]
        _check_lengths(known, length, over)
        written = _chosen(method, _reference_values(setting, known), over, length, seed)
        settings |= {
            "over": over,
            "seed": seed if method == "resample" else None,
            "reference": [list(each.ids) for each in known],
        }

    def vector(cell: Cell, position: int) -> Tensor:
        return written[cell.layer, cell.head][position]

    action = "project" if method == "project" else "write"
    plan = setting.plan("ablate", setting.cells([(method, None)]), action, vector, settings)
    return work(plan, nla, batch_size=batch_size, resume=resume)


def _reference_values(
    setting: Setting, known: Sequence[hosts.Positions]
) -> dict[Key, list[Tensor]]:
    """Each reference prompt's values at each site, ``[seq, width]``; a forward pass each."""
    found: dict[Key, list[Tensor]] = {key: [] for key in setting.sites}
    for each in known:
        run = setting.target.run([each.ids], setting.measure, collect=setting.sites)
        for key in setting.sites:
            found[key].append(run.values[key])
    return found


def _chosen(
    method: str, values: dict[Key, list[Tensor]], over: str, length: int, seed: int
) -> dict[Key, list[Tensor]]:
    """For each site, what is written at each position."""
    first = next(iter(values.values()))
    generator = torch.Generator().manual_seed(seed)
    if over == "position":
        drawn = torch.randint(len(first), (length,), generator=generator).tolist()
    else:
        rows = sum(len(each) - 1 for each in first)
        drawn = torch.randint(rows, (length,), generator=generator).tolist()
    chosen: dict[Key, list[Tensor]] = {}
    for key, listed_values in values.items():
        if over == "position":
            stacked = torch.stack(listed_values)
            mean = stacked.float().mean(dim=0)
            picked = [stacked[which, at] for at, which in enumerate(drawn)]
        else:
            tokens = torch.cat([each[1:] for each in listed_values])
            mean = tokens.float().mean(dim=0).expand(length, -1)
            picked = [tokens[which] for which in drawn]
        chosen[key] = list(mean) if method == "mean" else picked
    return chosen


def _check(method: Any, reference: Any, over: Any, direction: Any) -> None:
    if method not in get_args(Method):
        raise ExperimentError(
            f"method={method!r}: expected one of {', '.join(map(repr, get_args(Method)))}."
        )
    if over not in get_args(Over):
        raise ExperimentError(f"over={over!r}: expected 'position' or 'tokens'.")
    needs = method in ("mean", "resample")
    if needs and (isinstance(reference, str) or not reference):
        raise ExperimentError(
            f"method={method!r} needs prompts to take values from: reference=[prompt, ...]."
        )
    if reference is not None and not needs:
        raise ExperimentError(f"reference= goes with 'mean' and 'resample', not {method!r}.")
    if (direction is not None) != (method == "project"):
        raise ExperimentError(
            f"direction= goes with method='project', and with nothing else; method={method!r}, "
            f"direction={'None' if direction is None else 'given'}."
        )


def _check_lengths(known: Sequence[hosts.Positions], length: int, over: str) -> None:
    lengths = sorted({len(each.ids) for each in known})
    if over == "position" and lengths != [length]:
        raise ExperimentError(
            f"The prompt has {length} tokens and the reference prompts {lengths}, so their "
            'positions do not correspond. Give prompts of one length, or over="tokens".'
        )
    if over == "tokens" and lengths[-1] < 2:
        raise ExperimentError('over="tokens" leaves out first tokens, and there are no others.')
