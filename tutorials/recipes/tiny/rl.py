"""Improve two bad verbalizers of the tiny pair by reinforcement learning, and hack two rewards.

    python -m tutorials.recipes.tiny.rl WORK [RUN ...]

The runs: ``noisy`` and ``short`` (see `warm_starts`) with the reconstructor frozen, the same with
it trained along (``noisy-both``, ``short-both``) and judged by the frozen one, and two rewards that
can be hacked: ``length``, and ``blind``, a reconstructor that does not read the first line. All by
default; what is finished in the folder WORK is not done again. The figures of each go into
``tutorials/numbers/reinforcement.json``.

A run has stages, each the warm start of the next. The noisy verbalizer is first drawn from at
temperature 1.6: it is sure of wrong subjects, and one that is never drawn is never learned. At 1 it
becomes sure of the others too early, and at 1.3 in some runs and not in others. The short one has
its subjects right, is drawn from at 1, and learns at a lower rate that falls to a tenth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from nnsight_nla import NLA, Explanation, Sampling, tiny
from nnsight_nla.core.similarity import direction_mse
from nnsight_nla.tiny.examples import Examples, collect
from nnsight_nla.tiny.facts import held_out_pairs
from nnsight_nla.training import Reward, RLSettings, RLWatching, rl

from ..rl_figures import curve, read, record
from .evaluate import slot_accuracies
from .warm_starts import noisy, short, write_rows

EXPLORE = RLSettings(
    steps=60,
    prompts=32,
    draws=8,
    max_new_tokens=64,
    length_margin=16,
    temperature=1.6,
    av_rate=1e-4,
    warmup=2,
    final_rate=0.3,
    reconstructor="freeze",
    batch_size=64,
)
"""The first stage."""
SETTLE = replace(EXPLORE, steps=60, temperature=1.0, av_rate=2e-4, warmup=5)
"""The second stage."""
AGAIN = replace(EXPLORE, steps=60, temperature=1.2, av_rate=1.5e-4, final_rate=0.2, seed=2)
"""The third stage."""
GENTLE = replace(SETTLE, steps=120, av_rate=1.5e-4, warmup=10, final_rate=0.1)
"""The only stage from the short warm start, of which higher rates undo more than they teach."""
STAGES = {
    "noisy": ((EXPLORE, 60), (SETTLE, 60), (AGAIN, 60)),
    "noisy-both": ((EXPLORE, 60), (SETTLE, 60), (AGAIN, 60)),
    "short": ((GENTLE, 120),),
    "short-both": ((GENTLE, 100),),
}
"""The stages of each run, and their steps."""
AR_RATES = {"noisy-both": 1e-5, "short-both": 8e-5}
"""The reconstructor's rate where it is trained; the published one is 8e-5."""
HACKED = replace(
    EXPLORE,
    steps=20,
    prompts=16,
    temperature=1.3,
    av_rate=2e-4,
    final_rate=1.0,
    reconstruction=0.0,
)
"""From the noisy verbalizer: the shipped one is too sure to find anything else to say."""
HELD_OUT = 0.1
NULLS = 128
"""The draws without a vector."""
AR = tiny.paths()["ar"]
Report = Callable[[str], None]


def improve(start: Path, work: Path, name: str, report: Report) -> dict[str, Any]:
    """Run the stages from a verbalizer; return its figures before and after, and the log."""
    began, cpu = time.monotonic(), time.process_time()
    av, ar, log = start, AR, []
    for number, (stage, steps) in enumerate(STAGES[name]):
        found = rl(
            av,
            work / "rows.parquet",
            ar=ar,
            out=work / f"{name}.{number + 1}",
            settings=replace(stage, steps=steps, **_reconstructor(name)),
            watching=RLWatching(every=10, rows=200, judges={"exact": _exact}),
            held_out=HELD_OUT,
            report=report,
        )
        # The second stage begins where the first one was measured last.
        done = log[-1]["step"] if log else 0.0
        new = found.log[1:] if log else found.log
        log += [{**line, "step": line["step"] + done} for line in new]
        av, ar = found.av, found.ar or ar
    took, used = (time.monotonic() - began) / 60, (time.process_time() - cpu) / 60
    report(f"{took:.1f} minutes on the clock, {used:.1f} of a processor")
    figures = _measured(start, av, ar)
    return {**figures, "steps": len(log) - 1, "minutes": took, "processor": used, "log": curve(log)}


def _reconstructor(name: str) -> dict[str, Any]:
    if name not in AR_RATES:
        return {"reconstructor": "freeze"}
    return {"reconstructor": "train", "ar_rate": AR_RATES[name]}


def measure_again(start: Path, work: Path, name: str) -> dict[str, Any]:
    """Return the figures of a finished run with what is measured before and after it made anew."""
    last = work / f"{name}.{len(STAGES[name])}"
    ar = last / "ar"
    return {**read()[f"tiny {name}"], **_measured(start, last / "av", ar if ar.exists() else AR)}


def _measured(start: Path, av: Path, ar: Path) -> dict[str, dict[str, float]]:
    held_out = _held_out()
    figures = {"before": measure(start, AR, held_out), "after": measure(av, AR, held_out)}
    if ar != AR:
        figures["after, by the trained reconstructor"] = measure(av, ar, held_out)
    return figures


def measure(av: Path, ar: Path, held_out: Examples) -> dict[str, float]:
    """Return the figures of a verbalizer on pairs of subject and tone that were never trained on.

    ``null_reward`` is the mean reward, for these vectors, of what it draws without a vector at
    temperature 1, and ``null_error`` the standard error of that mean.
    """
    nla = NLA(av, ar=ar, dtype=torch.float32)
    nla.sampling = Sampling(max_new_tokens=EXPLORE.max_new_tokens)
    told = nla.explain(held_out.vectors)
    nla.resolve()
    texts, failed = told.extracted()
    score = nla.score(told, failures="zero")
    null = _null_rewards(nla, held_out.vectors)
    right = slot_accuracies([text or "" for text in texts], held_out)
    return {
        "fve": score.mean["fve"],
        "all slots": right.pop("exact"),
        **right,
        "extraction": 1 - len(failed) / len(held_out),
        "null_reward": float(null.mean()),
        "null_error": float(null.std()) / len(null) ** 0.5,
    }


def _null_rewards(nla: NLA, vectors: torch.Tensor) -> torch.Tensor:
    """Return the mean reward of each of `NULLS` texts that are drawn without a vector.

    One greedy text would not do: another wording of nothing moves it by 0.04, as measured over the
    draws of the warm starts.
    """
    drawn: list[Explanation] = []
    for seed in range(NULLS):
        nla.sampling = Sampling(max_new_tokens=EXPLORE.max_new_tokens, temperature=1.0, seed=seed)
        drawn.append(nla.explain_nothing())
    nla.resolve()
    texts = [str(each.text).replace("<explanation>", "").strip() for each in drawn]
    each = [-direction_mse(row[None], vectors).mean() for row in nla.reconstruct(texts)]
    return torch.stack(each)


def hack(work: Path, name: str, report: Report) -> dict[str, Any]:
    """Train the noisy verbalizer by a reward that can be hacked; return the log."""
    own = {"words": Reward(_words)}
    if name == "blind":
        own = {"blind": Reward(_blind()), "brief": Reward(_brief, 0.25)}
    stop = ("eval_fve<0.5",) if name == "length" else ("eval_grounded_subject<0.5",)
    found = rl(
        work / "noisy",
        work / "rows.parquet",
        ar=AR,
        out=work / name,
        settings=HACKED,
        watching=RLWatching(every=5, rows=100, stop=stop),
        rewards=own,
        held_out=HELD_OUT,
        dtype="float32",
        report=report,
    )
    return {"log": curve(found.log), "stopped": found.stopped}


def _exact(texts: list[str], labels: list[str], vectors: torch.Tensor) -> float:
    return sum(told == true for told, true in zip(texts, labels, strict=True)) / len(texts)


def _words(texts: list[str], vectors: torch.Tensor) -> list[float]:
    return [len(text.split()) / 10 for text in texts]


def _brief(texts: list[str], vectors: torch.Tensor) -> list[float]:
    return [-len(text.split()) / 20 for text in texts]


def _blind() -> Callable[[list[str], torch.Tensor], torch.Tensor]:
    """Return the reward of a reconstructor that gets one first line in place of every text's."""
    nla = NLA(tiny.paths()["av"], ar=AR, dtype=torch.float32)

    def blind(texts: list[str], vectors: torch.Tensor) -> torch.Tensor:
        seen = ["No subject yet; calm tone.\n" + text.partition("\n")[2] for text in texts]
        return -direction_mse(nla.reconstruct(seen), vectors)

    return blind


def _held_out() -> Examples:
    model, _ = tiny.load()
    return collect(model, sorted(held_out_pairs()), documents=100, seed=900)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line names, and write the figures."""
    runs = (*STAGES, "length", "blind")
    parser = argparse.ArgumentParser(prog="python -m tutorials.recipes.tiny.rl")
    parser.add_argument("work", type=Path, help="the folder for what is made")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"{', '.join(runs)}; default: all")
    parser.add_argument(
        "--measure", action="store_true", help="measure finished runs anew, and train nothing"
    )
    options = parser.parse_args(arguments)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)

    def report(line: str) -> None:
        sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {line}\n")
        sys.stdout.flush()

    model, _ = tiny.load()
    if not (work / "rows.parquet").exists():
        write_rows(model, work / "rows.parquet", documents=3000)
    for name in options.runs or runs:
        kind = name.partition("-")[0]
        report(f"run: {name}")
        hacked = kind in ("length", "blind")
        start = work / ("noisy" if hacked else kind)
        if not start.exists():
            _ = short(start, model, report) if kind == "short" else noisy(start)
        if hacked:
            record(f"tiny {name}", hack(work, name, report))
            continue
        if options.measure:
            figures = measure_again(start, work, name)
        else:
            figures = improve(start, work, name, report)
        record(f"tiny {name}", figures)
        report(f"{name}: {figures['before']} -> {figures['after']}")


if __name__ == "__main__":
    main()
