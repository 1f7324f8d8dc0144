"""Check that a partial sweep belongs to the call that is to go on with it.

The header says what was asked for, and hashes say how it was measured and who wrote the texts.
Whether the model is the same is seen from what it does: the runs without an intervention are made
again by every call, and have to give what they gave before.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ExperimentError
from .plan import Plan
from .records import Outcome
from .storage import identify_verbalizer
from .sweep import Sweep

_WIDE, _NARROW = 1e-3, 3e-2
"""How far two runs of one model may be apart, in float32 and in 16 bits, on other hardware too."""


def partial_sweep(plan: Plan) -> Sweep | None:
    """Return the sweep to go on with, checked to be of the same plan.

    Raises:
        ExperimentError: It is not a sweep, or another one: of other arguments, another metric,
            another model or verbalizer.
    """
    resume, nla = plan.setup.resume, plan.setup.nla
    if resume is None:
        return None
    sweep = resume
    if isinstance(resume, str | Path):  # Its header is compared below.
        sweep = Sweep.from_parquet(resume, nla=nla, claims="ignore")
    if not isinstance(sweep, Sweep):
        raise ExperimentError(
            f"resume={type(resume).__name__}: expected a Sweep, or the path of a stored one."
        )
    other = plan.header.differs_from(sweep.header)
    if other:
        shown = "; ".join(f"{name} was {a!r} and is {b!r}" for name, a, b in other)
        raise ExperimentError(
            f"resume= is another sweep: {shown}. Resume with the call it was made by."
        )
    before = sweep.identity
    now = {"metric": plan.measure.identity, **identify_verbalizer(nla)}
    first, date = before.get("date"), now.get("date")
    if first is not None and date is not None and first != date:
        raise ExperimentError(
            f"The texts of resume= were made with the date {first} in the verbalizer's prompt; the "
            f"prompt of this NLA has {date}. To continue, pass nla.on_date({first!r}) as the NLA."
        )
    changed = [name for name in before if before[name] != now.get(name)]
    if changed:
        said = " and its ".join(_CHANGED.get(name, name) for name in changed)
        raise ExperimentError(
            f"resume= is another sweep: its {said}. "
            "Resume with the call it was made by, or make the sweep again: leave out resume=."
        )
    apart = list(_apart(sweep.runs, plan.runs))
    if apart:
        raise ExperimentError(
            f"resume= was made by another model, or another state of {plan.header.target}: without "
            f"an intervention, {'; '.join(apart)}. Load the weights that it was made by, in the "
            "same dtype, or make the sweep again: leave out resume=."
        )
    return sweep


_CHANGED = {
    "metric": "metric has this name and is another function, or reads other values",
    "verbalizer": "texts are by another verbalizer, prompt or sampling",
}


def _apart(before: Mapping[str, Outcome], now: Mapping[str, Outcome]) -> Iterator[str]:
    """Say where the runs without an intervention differ."""
    vectors = [each for run in now.values() for each in run.residuals.values()]
    bound = _NARROW if vectors and all(map(_is_narrow, vectors)) else _WIDE
    metrics = [run.metric for run in (*before.values(), *now.values()) if run.metric is not None]
    scale = max(map(abs, metrics), default=0.0)
    for name in now:
        a, b = before[name], now[name]
        for at in sorted(set(a.residuals) & set(b.residuals)):
            distance = float((a.residuals[at] - b.residuals[at]).norm())
            if not distance <= bound * float(b.residuals[at].norm()):
                yield f"the residual of the {name} run at position {at} was another one"
        one, two = (math.nan if each.metric is None else each.metric for each in (a, b))
        same = a.metric is b.metric is None or abs(one - two) <= bound * scale + 1e-6
        if not same:
            yield f"the metric of the {name} run was {a.metric} and is {b.metric}"


def _is_narrow(vector: Tensor) -> bool:
    """Return whether a vector was computed in 16 bits: its values have no more."""
    kinds = (torch.bfloat16, torch.float16)
    return any(torch.equal(vector.to(kind).to(vector.dtype), vector) for kind in kinds)
