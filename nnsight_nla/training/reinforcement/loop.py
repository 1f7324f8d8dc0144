"""The loop of group-relative policy optimisation, one process per device.

A step draws a group of texts for each of its vectors, rewards them, and makes one update of the
verbalizer (and one of the reconstructor, on the same texts)::

    draws       the engine of inference, from the current weights         rollout.py
    rewards     minus the direction MSE, and the caller's own             reward.py
    advantages  within each group                                         core/group_relative.py
    gradients   of the drawn tokens' log-probabilities, less k3 KL        policy.py

accelerate says which process this is and adds up gradients. Each process has a copy of the models
and its share of a step's vectors. Draws depend on the step's number and order on the seed, so a
resumed training is the same as an undisturbed one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object, reduce
from torch import Tensor, nn

from ...core.group_relative import advantages, distinct, k3, policy_loss
from ...progress import progress
from ..files import Log
from ..rows import TrainingError
from .pair import Pair
from .policy import Policy
from .recomputing import recomputing
from .reconstruction import reconstruction_losses
from .reward import Reward, Rewarded, rewarded
from .rollout import Rollout, roll_out
from .settings import RLSettings
from .vectors import Vectors

Figures = dict[str, float]
CLIP = 1.0
"""The largest norm of a step's gradient."""
STEP_FIGURES = (
    "reward", "reconstruction", "length_penalty", "extraction", "cut", "length", "kl", "entropy",
    "distinct", "gradient", "seconds", "rollout_share", "rollout_tokens",
)  # fmt: skip
"""The figures of every step; with a trained reconstructor also ``ar_loss``."""


@dataclass
class Loop:
    """A training in progress."""

    pair: Pair
    """The models."""
    vectors: Vectors
    """What they are trained on."""
    settings: RLSettings
    """The hyperparameters."""
    own: Mapping[str, Reward]
    """The caller's rewards."""
    processes: PartialState
    """Which process this is, of how many."""
    log: Log = field(default_factory=list[dict[str, float]])
    """The figures so far, by step."""
    optimizers: dict[str, torch.optim.Optimizer] = field(init=False)
    """AdamW of the verbalizer, and of the reconstructor if it is trained."""

    def __post_init__(self) -> None:
        """Make the optimizers, and check that the vectors can be shared between processes."""
        count, prompts = self.processes.num_processes, self.settings.prompts
        if prompts % count:
            raise TrainingError(
                f"RLSettings(prompts={prompts}) cannot be shared by {count} processes. Use a "
                f"multiple of {count}, such as {math.ceil(prompts / count) * count}."
            )
        settings, pair = self.settings, self.pair
        self._device = torch.device(self.processes.device or "cpu")
        self.policy = Policy(pair.verbalizer, settings)
        self._rates = {"av": settings.av_rate}
        weights: dict[str, list[nn.Parameter]] = {"av": list(pair.av_weights.values())}
        if pair.reconstructor is not None:
            self._rates["ar"], weights["ar"] = settings.ar_rate, list(pair.ar_weights.values())
        self.optimizers = {
            role: torch.optim.AdamW(weights[role], lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
            for role, rate in self._rates.items()
        }

    def run(self, done: int, after: Callable[[int, Figures], bool]) -> None:
        """Take the steps that are left.

        Args:
            done: How many steps are done.
            after: Called after each step, with its number from 1 and its figures; returns whether
                to stop.

        Raises:
            TrainingError: A step teaches nothing: no text is an explanation, or the loss is not a
                number.
        """
        steps = self.settings.steps
        with (
            self.policy.writing(),
            progress("reinforcing", total=max(0, steps - done), unit="step") as bar,
        ):
            for step in range(done, steps):
                figures = self._step(step)
                self.log.append({"step": float(step + 1), **figures})
                bar.advance(1)
                if after(step + 1, figures):
                    return

    def _step(self, step: int) -> Figures:
        """Take one step, counted from 0; return its figures over all processes."""
        settings, began = self.settings, time.perf_counter()
        mine = self._mine(self.vectors.of_step(step, settings.prompts))
        self.pair.hand_over()
        rollout = roll_out(self.pair.nla, mine, settings, step)
        drawn = time.perf_counter() - began
        self._check_some_proper(rollout, step + 1)
        reward = rewarded(rollout, self.pair.reconstruct, settings, self.own, step + 1)
        figures = self._update_policy(rollout, reward, step)
        if self.pair.reconstructor is not None:
            figures["ar_loss"] = self._update_reconstructor(rollout, step)
        seconds = time.perf_counter() - began
        figures |= {"seconds": seconds, "rollout_share": drawn / seconds}
        figures["rollout_tokens"] = sum(rollout.lengths) / drawn
        figures |= _of_texts(rollout, reward)
        return _mean(gather_object([figures]))

    def _mine(self, vectors: Tensor) -> Tensor:
        size = len(vectors) // self.processes.num_processes
        start = self.processes.process_index * size
        return vectors[start : start + size]

    def _check_some_proper(self, rollout: Rollout, step: int) -> None:
        counts = gather_object([(len(rollout.proper), sum(rollout.cut), len(rollout.texts))])
        proper, cut, texts = (sum(each) for each in zip(*counts, strict=True))
        if proper == 0:
            raise TrainingError(
                f"At step {step} none of the {texts} texts is an explanation (extraction 0; {cut} "
                f"were cut off at {self.settings.max_new_tokens} tokens), so their rewards teach "
                "nothing. Start from a verbalizer that writes explanations, allow longer texts "
                "(max_new_tokens), or lower av_rate."
            )

    def _update_policy(self, rollout: Rollout, reward: Rewarded, step: int) -> Figures:
        settings, policy = self.settings, self.policy
        grouped = reward.total.view(-1, rollout.draws)
        advantage = advantages(grouped).flatten().to(self._device)
        batches = list(_batches(rollout, settings.batch_size))
        with (
            self.pair.reference.in_place(),
            torch.no_grad(),
            self._autocast(),
            self._packed(sum(rollout.lengths) // len(batches)),
        ):
            references: list[Tensor] = []
            for groups, texts in batches:
                with policy.scoring(rollout.vectors[groups], [rollout.ids[i] for i in texts]) as s:
                    references.append(s.logprobs)
        count = torch.tensor(float(sum(rollout.lengths)), device=self._device)
        total = float(cast("Tensor", reduce(count, "sum")))
        sums = {"kl": 0.0, "entropy": 0.0}
        for (groups, texts), reference in zip(batches, references, strict=True):
            with (
                self._autocast(),
                policy.scoring(rollout.vectors[groups], [rollout.ids[i] for i in texts]) as scored,
            ):
                loss = policy_loss(
                    scored.logprobs, reference, advantage[texts], scored.drawn, kl=settings.kl
                )
                (loss / total).backward()
            own = scored.drawn
            sums["kl"] += float(k3(scored.logprobs.detach(), reference)[own].sum())
            sums["entropy"] += float(scored.entropy[own].sum())
        norm = self._apply("av", step)
        return {**{name: each / float(count) for name, each in sums.items()}, "gradient": norm}

    def _update_reconstructor(self, rollout: Rollout, step: int) -> float:
        pair = self.pair
        assert pair.reconstructor is not None
        rows = rollout.proper
        draws = rollout.draws
        groups = torch.tensor([n // draws for n in rows], dtype=torch.long, device="cpu")
        total = 0.0
        losses = reconstruction_losses(
            pair.reconstructor, pair.opened.tokenizer, pair.judge.template,
            [rollout.texts[number] for number in rows], rollout.vectors[groups],
            self.settings.batch_size,
        )  # fmt: skip
        on = self.settings.activations == "recompute"
        with self._autocast(), recomputing(pair.reconstructor.model, on=on):
            for loss in losses:
                (loss / self.processes.num_processes).backward()
                total += float(loss.detach())
        self._apply("ar", step)
        pair.sync_head()
        return total

    def _apply(self, role: str, step: int) -> float:
        """Add up the processes' gradients and make an update; return the gradient's norm."""
        optimizer = self.optimizers[role]
        weights: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        if self.processes.num_processes > 1:
            for weight in weights:
                gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = reduce(gradient, "sum")  # type: ignore[assignment]
        norm = float(nn.utils.clip_grad_norm_(weights, CLIP))
        if not math.isfinite(norm):
            raise TrainingError(
                f"At step {step + 1} the norm of the {role}'s gradient is {norm}. Lower "
                f"{role}_rate (now {self._rates[role]:g}), or train in float32."
            )
        optimizer.param_groups[0]["lr"] = self._rates[role] * schedule(step, self.settings)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm

    def _autocast(self) -> Any:
        if self.settings.precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, torch.bfloat16)

    def _packed(self, tokens: int) -> AbstractContextManager[None]:
        """Use packed weights where nothing needs a gradient; they compute in the weights' dtype."""
        narrow = self.settings.precision != "float32"
        return nullcontext() if narrow else self.pair.verbalizer.packed(tokens)

    def agreed(self, value: Any) -> Any:
        """Return what the first process has; the others wait for it."""
        (found,) = broadcast_object_list([value])
        return found


def schedule(step: int, settings: RLSettings) -> float:
    """Return the learning rate of a step, counted from 0, as a fraction of its peak.

    >>> settings = RLSettings(steps=10, warmup=2, final_rate=0.1)
    >>> [round(schedule(step, settings), 2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.13]
    """
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    way = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * way)) / 2


def _batches(rollout: Rollout, size: int) -> Iterator[tuple[list[int], list[int]]]:
    """Yield groups of similar length, the longest first, and the numbers of their texts."""
    draws, lengths = rollout.draws, rollout.lengths

    def longest(group: int) -> int:
        return max(lengths[group * draws : (group + 1) * draws])

    order = sorted(range(len(rollout.vectors)), key=lambda group: -longest(group))
    count = max(1, size // draws)
    for start in range(0, len(order), count):
        groups = order[start : start + count]
        yield groups, [group * draws + draw for group in groups for draw in range(draws)]


def _of_texts(rollout: Rollout, reward: Rewarded) -> Figures:
    texts = len(rollout.texts)
    return {
        "reward": float(reward.total.mean()),
        **reward.parts,
        "extraction": len(rollout.proper) / texts,
        "cut": sum(rollout.cut) / texts,
        "length": sum(rollout.lengths) / texts,
        "distinct": distinct(rollout.texts, rollout.draws),
    }


def _mean(found: list[Figures]) -> Figures:
    """Return the mean of each figure over the processes that have it."""
    names = dict.fromkeys(name for each in found for name in each)
    values = {name: [each[name] for each in found if name in each] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}
