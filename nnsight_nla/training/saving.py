"""From a trained half to the folder that ``NLA(av, ar=ar)`` loads: weights, tokenizer, sidecar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from ..checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE, EXPLANATION_SLOT, Checkpoint
from ..checkpoint.prompt import Prompt
from ..checkpoint.sidecar import SIDECARS
from ..core.injection import Injection
from .atomic_folder import whole
from .reconstructor import Reconstructor
from .rows import TrainingError

HEAD_FILE = "value_head.safetensors"
"""The reconstructor's head, beside its blocks: one matrix, ``weight``."""


def describe(
    tokenizer: Any,
    *,
    layer: int,
    d_model: int,
    base_model: str | None = None,
    marker: str = "㈎",
    injection: Injection = Injection(),  # noqa: B008  (frozen)
    template: str = AV_TEMPLATE,
    ar_template: str | None = AR_TEMPLATE,
) -> Checkpoint:
    """Describe a checkpoint that is about to be trained; ids are read off the live tokenizer.

    Args:
        tokenizer: The target's tokenizer, with a chat template.
        layer: K, the block whose output is verbalized, counted from 0.
        d_model: The residual's width.
        base_model: The target's name, for the sidecar.
        marker: A character that is one token and occurs in no text.
        injection: How the vector is written.
        template: The verbalizer's user message.
        ar_template: The reconstructor's prompt.

    Raises:
        TrainingError: The tokenizer splits the marker.
    """
    ids = list(tokenizer.encode(marker, add_special_tokens=False))
    if len(ids) != 1:
        raise TrainingError(
            f"The marker {marker!r} is {len(ids)} tokens {ids}, expected one. Choose a character "
            "that this tokenizer keeps whole, or add it: tokenizer.add_tokens([marker])."
        )
    checkpoint = Checkpoint(
        layer=layer,
        d_model=d_model,
        template=template,
        marker=marker,
        marker_id=ids[0],
        injection=injection,
        ar_template=ar_template,
        ar_suffix_ids=None if ar_template is None else _suffix(tokenizer, ar_template),
        base_model=base_model,
    )
    prompt = Prompt.render(checkpoint, tokenizer)
    return replace(checkpoint, left_id=prompt.left_id, right_id=prompt.right_id)


def save_verbalizer(
    folder: str | Path,
    model: Any,
    tokenizer: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    **extra: Any,
) -> None:
    """Write a verbalizer's folder.

    A model with adapters is written as an adapter, its base model by name alone; call its
    ``merge_and_unload()`` first for a folder that needs no base.

    Args:
        folder: Is there as a whole when this returns, or as it was before (`folders.whole`).
        model: From `train_verbalizer`.
        tokenizer: The tokenizer it was trained with.
        checkpoint: What it was trained with.
        dtype: What the weights are cast to, in place; ``None`` leaves them.
        extra: More entries of the sidecar, such as ``trained_on``.

    Raises:
        TrainingError: The disk is full, or `folder` holds something else than a checkpoint.
    """
    if dtype is not None:
        model.to(dtype)
    with whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        _save_sidecar(part, checkpoint.to_sidecar("av", **{"stage": "av_sft", **extra}))


def save_reconstructor(
    folder: str | Path,
    reconstructor: Reconstructor,
    tokenizer: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    **extra: Any,
) -> None:
    """Write a reconstructor's folder: the cut base or the adapter on it, and its head.

    The cut base is a model like any other, one that ``from_pretrained`` loads without complaint;
    so its file has the final norm that the reconstructor never runs. The head is in `HEAD_FILE`.

    Args:
        folder: Is there as a whole when this returns, or as it was before (`folders.whole`).
        reconstructor: From `train_reconstructor`.
        tokenizer: The tokenizer it was trained with.
        checkpoint: What it was trained with.
        dtype: What the weights are cast to, in place; ``None`` leaves them.
        extra: More entries of the sidecar.

    Raises:
        TrainingError: The disk is full, or `folder` holds something else than a checkpoint.
    """
    if dtype is not None:
        reconstructor.to(dtype)
    head = {"weight": reconstructor.head.weight.detach().cpu().contiguous()}
    entries = {"stage": "ar_sft", "final_norm_stripped": True, **extra}
    with whole(folder) as part:
        if reconstructor.adapted:
            reconstructor.model.save_pretrained(part)
        else:
            with _norm_in_place(reconstructor) as model:
                model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        save_file(head, part / HEAD_FILE)
        _save_sidecar(part, checkpoint.to_sidecar("ar", **entries))


@contextmanager
def _norm_in_place(reconstructor: Reconstructor) -> Iterator[Any]:
    """The cut base as a model like any other, with the final norm that it never runs."""
    parent, _, name = reconstructor.final_norm_name.rpartition(".")
    decoder = reconstructor.model.get_submodule(parent)
    # Cast here, for it is no part of the reconstructor.
    setattr(decoder, name, reconstructor.final_norm.to(reconstructor.model.dtype))
    try:
        yield reconstructor.model
    finally:
        setattr(decoder, name, nn.Identity())


def _save_sidecar(folder: Path, sidecar: dict[str, Any]) -> None:
    text = yaml.safe_dump(sidecar, sort_keys=False, allow_unicode=True)
    (folder / SIDECARS[0]).write_text(text, encoding="utf-8")


def _suffix(tokenizer: Any, template: str) -> tuple[int, ...]:
    """The ids that every reconstructor's prompt ends in, whatever the explanation ends with.

    A tokenizer may merge the template's first sign into the explanation's last (``.</``), so they
    are what the prompts of several explanations have in common.
    """
    endings = ("a", "a.", "a!", 'a"', "1", "a\n")
    prompts = [list(tokenizer.encode(template.replace(EXPLANATION_SLOT, end))) for end in endings]
    common: list[int] = []
    for column in zip(*(reversed(ids) for ids in prompts), strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return tuple(reversed(common))
