"""Open a warm start's verbalizer and reconstructor to train them on.

Both are opened as an `NLA` opens them, so every layout that can be used can be trained, and what
draws and judges is what is trained: the same modules, with no copy between them::

    pair = open_pair(av, ar, settings, device=device)
    pair.nla.explain(...)                       # draws from the current policy
    with pair.reference.in_place(): ...         # the warm start's verbalizer
    with pair.fixed_reconstructor(): ...        # the warm start's reconstructor

An adapter continues as it is: only its matrices are trained, and a copy of them is the reference. A
fresh adapter on merged weights would start further away.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...checkpoint import dialects, sidecar
from ...checkpoint.checkpoint import Checkpoint
from ...checkpoint.identity import same_model
from ...checkpoint.sidecar import SIDECARS, stored
from ...evaluation.reconstructor import Reconstructor as Judge
from ...explanation.asked import check_single
from ...models import hosts
from ...models.adapter import is_adapter
from ...models.loading import load_config
from ...models.memory import Memory
from ...models.open import OpenedReconstructor, OpenOptions, open_reconstructor
from ...nla import NLA
from ...verbalize.verbalizer import Verbalizer
from ...verbalize.vllm.engine import VllmEngine
from ..adapters import adapter_weights, with_adapters
from ..reconstructor import Reconstructor
from ..rows import TrainingError
from .frozen_copy import FrozenCopy
from .rollout_engine import Handover, nla_options
from .settings import RLSettings

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass
class Pair:
    """A verbalizer and a reconstructor under training."""

    nla: NLA
    """Draws from the policy."""
    verbalizer: Verbalizer
    """The policy's verbalizer."""
    av_weights: dict[str, nn.Parameter]
    """The weights of the verbalizer that are trained, by name."""
    reference: FrozenCopy
    """The same as the warm start has them."""
    judge: Judge
    """Turns texts into vectors, with the reconstructor's current weights."""
    opened: OpenedReconstructor
    """The reconstructor as it is stored, with its tokenizer."""
    av_stored: torch.dtype | None
    """The dtype that a whole verbalizer is stored in; ``None`` for an adapter."""
    ar_stored: torch.dtype | None
    """The same of the reconstructor."""
    reconstructor: Reconstructor | None
    """The reconstructor as it is trained; ``None`` if it is frozen."""
    ar_weights: dict[str, nn.Parameter]
    """The weights of the reconstructor that are trained, or that must not move."""
    ar_start: FrozenCopy
    """The same as the warm start has them."""
    handover: Handover | None = None
    """Gives the engine that draws the policy's weights, if it has its own."""

    @property
    def checkpoint(self) -> Checkpoint:
        """The verbalizer's checkpoint."""
        return self.nla.checkpoint

    @property
    def policy(self) -> nn.Module:
        """The verbalizer's module."""
        return hosts.module_of(self.nla.av)

    def hand_over(self) -> None:
        """Let the engine that draws have the policy's current weights."""
        if self.handover is not None:
            self.handover()

    def close(self) -> None:
        """Stop the engine that draws, if it has weights of its own."""
        if self.handover is not None:
            self.handover.close()

    def reconstruct(self, texts: list[str]) -> Float[Tensor, "texts d_model"]:
        """Reconstruct texts with the current reconstructor."""
        return self.judge.reconstruct(texts)

    @contextmanager
    def fixed_reconstructor(self) -> Generator[None, None, None]:
        """Judge with the warm start's reconstructor while the block runs."""
        with self.ar_start.in_place() if self.reconstructor is not None else nullcontext():
            self.sync_head()
            yield
        self.sync_head()

    def sync_head(self) -> None:
        """Let the judge see the head as it is now; its own is on the CPU, whatever trains."""
        if self.reconstructor is not None:
            with torch.no_grad():
                self.judge.head.copy_(self.reconstructor.head.weight)

    def check_frozen(self, step: int) -> None:
        """Raise if a frozen reconstructor is not what it was.

        Raises:
            TrainingError: A weight has changed; the message has the largest change.
        """
        if self.reconstructor is not None:
            return
        change = self.ar_start.largest_change()
        if change != 0:  # NaN too.
            raise TrainingError(
                f"The reconstructor is frozen and has moved by step {step}: its weights changed by "
                f"up to {change:.3g}, so its rewards cannot be compared with earlier ones. "
                "Something else trains it or writes to its weights. Give the training a "
                "reconstructor of its own, or let it train it: "
                "RLSettings(reconstructor='train')."
            )


def open_pair(
    av: str | Path,
    ar: str | Path,
    settings: RLSettings,
    *,
    device: torch.device | None = None,
    dtype: str | None = None,
    vllm: Mapping[str, Any] | None = None,
) -> Pair:
    """Open and load a warm start.

    Args:
        av: The verbalizer: a folder or a Hub id, of a whole model or an adapter.
        ar: The reconstructor, likewise.
        settings: What is trained.
        device: Where the models go; the CPU unless given.
        dtype: The dtype of the weights. By default float32 where all are trained, and as stored
            under adapters.
        vllm: The keyword arguments of vLLM's ``LLM``, if it draws.

    Raises:
        CheckpointError: One cannot be read, or they are of another layer or width.
        TrainingError: They are of different targets, the verbalizer has an adapter and is to get
            another, or the reconstructor cannot be trained.
    """
    place: dict[str, Any] = (
        {} if device is None or device.type == "cpu" else {"device_map": {"": str(device)}}
    )
    own = dtype or _dtype(av, whole=settings.lora is None)
    nla = NLA(av, dtype=own, **nla_options(settings, vllm), **place)
    check_single(nla.checkpoint, "rl")
    check_one_target(av, nla.checkpoint, ar)
    freeze = settings.reconstructor == "freeze"
    load = {"dtype": dtype or _dtype(ar, whole=not freeze), **place}
    opened = open_reconstructor(ar, OpenOptions(None, False, Memory(), load), nla.checkpoint)
    judge = Judge(opened, nla.checkpoint)
    with nla.runtime.use(), opened.runtime.use():
        policy = hosts.module_of(nla.av)
        if settings.lora is not None:
            if adapter_weights(policy):
                raise TrainingError(
                    f"{av} is an adapter, which reinforcement learning continues, and "
                    f"lora={settings.lora} would put another one on it. Leave lora out."
                )
            with_adapters(policy, settings.lora, settings.seed)
        av_weights = _trainable(policy)
        reconstructor = None if freeze else _trained_reconstructor(opened, judge, nla, ar)
        ar_weights = (
            dict(hosts.module_of(judge.ar).named_parameters())
            if reconstructor is None
            else {
                **{f"model.{name}": each for name, each in _trainable(reconstructor.model).items()},
                "head.weight": reconstructor.head.weight,
            }
        )
    engine = nla.queue.engine
    watched = [*ar_weights.values(), *([judge.head] if reconstructor is None else [])]
    return Pair(
        nla=nla,
        verbalizer=Verbalizer(nla.runtime, nla.checkpoint, nla.prompt),
        av_weights=av_weights,
        reference=FrozenCopy(av_weights.values()),
        judge=judge,
        opened=opened,
        av_stored=None if adapter_weights(policy) else _stored(av),
        ar_stored=_stored(ar),
        reconstructor=reconstructor,
        ar_weights=ar_weights,
        ar_start=FrozenCopy(watched),
        handover=Handover(engine, policy) if isinstance(engine, VllmEngine) else None,
    )


def check_one_target(av: str | Path, checkpoint: Checkpoint, ar: str | Path) -> None:
    """Raise if a reconstructor says that it is of another target than the verbalizer.

    Raises:
        TrainingError: It is.
    """
    file = next((found for name in SIDECARS if (found := stored(ar, name)) is not None), None)
    theirs = None if file is None else dialects.find_fields(sidecar.read(file), str(file))[0]
    named, own = (theirs or {}).get("base_model"), checkpoint.base_model
    if named is not None and own is not None and not same_model(own, named):
        raise TrainingError(
            f"{av} is a verbalizer of {own}, {ar} a reconstructor of {named} (by their sidecars). "
            "Train a verbalizer and a reconstructor of one target and one layer."
        )


def _dtype(source: str | Path, *, whole: bool) -> str:
    """Return the dtype to load: float32 where all weights are trained, since AdamW needs it."""
    if is_adapter(source):
        return "auto"
    # Processors have no fast products in float16, and it overflows without a scaler.
    return "float32" if whole or _stored(source) == torch.float16 else "auto"


def _stored(source: str | Path) -> torch.dtype | None:
    """Return the dtype that a whole model is stored in; ``None`` for an adapter."""
    if is_adapter(source):
        return None
    named = str(getattr(load_config(source, {}), "dtype", None)).removeprefix("torch.")
    return getattr(torch, named, None)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's weights, or all if there is none; nothing else gets gradients."""
    adapters = adapter_weights(module)
    chosen = adapters or dict(module.named_parameters())
    ids = {id(each) for each in chosen.values()}
    for each in module.parameters():
        each.requires_grad_(id(each) in ids)
    return chosen


def _trained_reconstructor(
    opened: OpenedReconstructor, judge: Judge, nla: NLA, ar: str | Path
) -> Reconstructor:
    if opened.layout.final_norm:
        raise TrainingError(
            f"{ar} was trained with the final norm after its last block, which training here "
            "leaves out. Freeze it: RLSettings(reconstructor='freeze')."
        )
    module: Any = hosts.module_of(judge.ar)
    reconstructor = Reconstructor(module, nla.checkpoint.layer, judge.head)
    return reconstructor.eval()
