"""Save what was trained as folders that ``NLA(av, ar=ar)`` loads.

A folder has weights, tokenizer, sidecar and a model card, and can be uploaded as it is.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from ..checkpoint import sidecar
from ..checkpoint.checkpoint import AR_TEMPLATE, AV_TEMPLATE, EXPLANATION_SLOT, Checkpoint
from ..checkpoint.dates import Date, to_iso
from ..checkpoint.question import first_prompt
from ..checkpoint.sidecar import SIDECARS
from ..core.injection import Injection
from ..errors import CheckpointError, shown
from ..storage.atomic import KEPT, atomic_folder
from .adapters import adapter_weights, save_adapter
from .card import CARD, model_card
from .reconstructor import Reconstructor
from .rows import TrainingError

HEAD_FILE = "value_head.safetensors"
"""The file of the reconstructor's head: one matrix, ``weight``."""

_DTYPES = ("float32", "bfloat16", "float16")
MARKERS = ("㈎", "†", "‡", "§", "¶", "※", "→", "●", "◆", "★")
"""Rare characters that many tokenizers have as one token, in the order in which they are tried."""


def describe(
    tokenizer: Any,
    *,
    layer: int,
    d_model: int,
    base_model: str | None = None,
    layers: Sequence[int] | None = None,
    marker: str | int | None = None,
    injection: Injection = Injection(),  # noqa: B008  (frozen)
    template: str = AV_TEMPLATE,
    system: str | None = None,
    ar_template: str | None = AR_TEMPLATE,
    date: Date | None = None,
    vectors: int | None = None,
) -> Checkpoint:
    """Describe the checkpoint that a training will make; token ids come from the live tokenizer.

    Args:
        tokenizer: The target's tokenizer, with a chat template.
        layer: K, the block whose output is verbalized, counted from 0.
        d_model: The residual's width.
        base_model: The target's name, for the sidecar.
        layers: All blocks that an oracle is trained on, if several; `layer` is one of them.
        marker: A text that is one token, or its id; by default the first of `MARKERS` that is one
            token of this tokenizer. A verbalizer's should not occur in texts.
        injection: How the vector is written.
        template: The verbalizer's user message; `ORACLE_TEMPLATE`, or another with
            ``{question}``, for an oracle.
        system: The system message before it. Without one, the chat template may add its own, in
            every row; ``""`` is an empty one.
        ar_template: The reconstructor's prompt.
        date: The date that the prompt has, if the chat template prints one; default: today. The
            checkpoint keeps it, and every NLA that is loaded from it has the same prompt.
        vectors: How many vectors one explanation is of, if several: the template has a marker for
            each, and there is no reconstructor.

    Raises:
        TrainingError: The tokenizer splits the marker, or all of `MARKERS`.
    """
    known = {each: _token_id(tokenizer, each) for each in MARKERS if each not in template}
    good = [each for each, token in known.items() if token is not None]
    if marker is None and not good:
        raise TrainingError(
            f"This tokenizer splits each of {' '.join(MARKERS)}. Pass marker= with a rare "
            "character that is one of its tokens, or add one: tokenizer.add_tokens([marker])."
        )
    given = tokenizer.decode([marker]) if isinstance(marker, int) else marker
    text = good[0] if given is None else given
    marker_id = _token_id(tokenizer, text)
    if marker_id is None:
        ids = list(tokenizer.encode(text, add_special_tokens=False))
        such = f", such as {' '.join(good)}," if good else ""
        raise TrainingError(
            f"The marker {text!r} is {len(ids)} tokens {ids}, expected one. Pass marker= with a "
            f"text that is one token here{such} or add it: tokenizer.add_tokens([marker])."
        )
    checkpoint = Checkpoint(
        layer=layer,
        layers=None if layers is None else tuple(layers),
        d_model=d_model,
        template=template,
        system=system,
        marker=text,
        marker_id=marker_id,
        injection=injection,
        ar_template=ar_template,
        ar_suffix_ids=None if ar_template is None else _suffix(tokenizer, ar_template),
        base_model=base_model,
        date=None if date is None else to_iso(date),
        vectors=vectors,
    )
    prompt = first_prompt(checkpoint, tokenizer)
    if checkpoint.asks:
        return replace(checkpoint, date=prompt.date)
    neighbours = {"left_id": prompt.left_id, "right_id": prompt.right_id}
    return replace(checkpoint, **neighbours, date=prompt.date)


def save_verbalizer(
    folder: str | Path,
    model: Any,
    tokenizer: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    advice: str = KEPT,
    **extra: Any,
) -> None:
    """Save a verbalizer.

    A model with adapters is saved as an adapter that names its base model; call its
    ``merge_and_unload()`` first for a folder that does not need the base.

    Args:
        folder: The folder to write; it replaces a checkpoint of that name, in one step.
        model: From `train_verbalizer`.
        tokenizer: The tokenizer it was trained with.
        checkpoint: What it was trained with.
        dtype: The dtype to cast what is saved to, in place; ``None`` leaves it.
        advice: What the user can do after a failed write; the end of the message.
        extra: More entries of the sidecar, such as ``trained_on``.

    Raises:
        TrainingError: The disk is full, or `folder` holds something other than a checkpoint.
    """
    if dtype is not None:
        _cast(model, dtype)
    with _checkpoint_folder(folder, advice) as part:
        save_weights(model, part)
        tokenizer.save_pretrained(part)
        entries = checkpoint.to_sidecar("av", **{"stage": "av_sft", **extra})
        _save_sidecar(part, entries, Path(folder).name)


def save_reconstructor(
    folder: str | Path,
    reconstructor: Reconstructor,
    tokenizer: Any,
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype | None = None,
    advice: str = KEPT,
    **extra: Any,
) -> None:
    """Save a reconstructor: the cut base, or the adapter on it, and its head (`HEAD_FILE`).

    The cut base includes the final norm, which the reconstructor does not run, so that
    ``from_pretrained`` loads it as a complete model.

    Args:
        folder: The folder to write; it replaces a checkpoint of that name, in one step.
        reconstructor: From `train_reconstructor`.
        tokenizer: The tokenizer it was trained with.
        checkpoint: What it was trained with.
        dtype: The dtype to cast what is saved to, in place; ``None`` leaves it.
        advice: What the user can do after a failed write; the end of the message.
        extra: More entries of the sidecar.

    Raises:
        TrainingError: The disk is full, or `folder` holds something other than a checkpoint.
    """
    if dtype is not None:
        _cast(reconstructor.model, dtype)
        reconstructor.head.to(dtype)
    head = {"weight": reconstructor.head.weight.detach().cpu().contiguous()}
    entries = {"stage": "ar_sft", "final_norm_stripped": True, **extra}
    with _checkpoint_folder(folder, advice) as part:
        if reconstructor.adapted or adapter_weights(reconstructor.model):
            save_weights(reconstructor.model, part)
        else:
            with _with_final_norm(reconstructor) as model:
                model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        save_file(head, part / HEAD_FILE)
        _save_sidecar(part, checkpoint.to_sidecar("ar", **entries), Path(folder).name)


def check_save_dtype(given: object) -> None:
    """Raise if a dtype to save in is none that a checkpoint may have."""
    if given is not None and given not in _DTYPES:
        raise TrainingError(f"save_dtype={shown(given)}: expected one of {', '.join(_DTYPES)}.")


def read_sidecar(folder: Path) -> dict[str, Any]:
    """Return the sidecar in a checkpoint's folder; empty if there is none that can be read."""
    file = next((folder / name for name in SIDECARS if (folder / name).is_file()), None)
    try:
        tree = {} if file is None else sidecar.read(file)
    except (OSError, CheckpointError):
        tree = {}
    return tree if isinstance(tree, dict) else {}


def trained_on(folder: Path) -> list[dict[str, Any]]:
    """Return a checkpoint's account of what it was trained on."""
    listed = read_sidecar(folder).get("trained_on")
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _token_id(tokenizer: Any, text: str) -> int | None:
    """Return the token that is exactly `text`; ``None`` if the tokenizer splits it."""
    added: dict[str, int] = tokenizer.get_added_vocab()
    if text in added:
        return added[text]
    ids = list(tokenizer.encode(text, add_special_tokens=False))
    # SentencePiece puts a space before a text, so a lone character may be two tokens.
    for token in (ids[0] if len(ids) == 1 else None, tokenizer.convert_tokens_to_ids(text)):
        if isinstance(token, int) and text in (said := tokenizer.decode([token]), said.strip()):
            return token
    return None


@contextmanager
def _checkpoint_folder(folder: str | Path, advice: str) -> Generator[Path, None, None]:
    """Write a folder atomically; refuse to replace anything but a checkpoint."""
    folder = Path(folder).absolute()
    is_checkpoint = any((folder / name).is_file() for name in SIDECARS)
    if folder.exists() and not is_checkpoint and (folder.is_file() or any(folder.iterdir())):
        raise TrainingError(
            f"{folder} exists and is not a checkpoint. Choose another name, or remove it."
        )
    with atomic_folder(folder, advice=advice, error=TrainingError) as part:
        yield part


@contextmanager
def _with_final_norm(reconstructor: Reconstructor) -> Generator[Any, None, None]:
    """Put the final norm back into the cut base while the block runs."""
    parent, _, name = reconstructor.final_norm_name.rpartition(".")
    decoder = reconstructor.model.get_submodule(parent)
    # In the dtype of the blocks, which may have been cast.
    setattr(decoder, name, reconstructor.final_norm.to(reconstructor.model.dtype))
    try:
        yield reconstructor.model
    finally:
        setattr(decoder, name, nn.Identity())


def save_weights(model: Any, folder: Path) -> None:
    """Save a model, or the adapters on it alone, however they were put there."""
    if not hasattr(model, "get_base_model") and adapter_weights(model):
        save_adapter(model, folder)
    else:
        model.save_pretrained(folder)


def _cast(model: Any, dtype: torch.dtype) -> None:
    """Cast a model, or the adapters on it alone."""
    adapters = adapter_weights(model)
    if not adapters:
        model.to(dtype)
    for weight in adapters.values():
        weight.data = weight.data.to(dtype)


def _save_sidecar(folder: Path, entries: dict[str, Any], name: str) -> None:
    """Write the sidecar, and the model card in place of the one that PEFT writes."""
    text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
    (folder / SIDECARS[0]).write_text(text, encoding="utf-8")
    (folder / CARD).write_text(model_card(name, entries), encoding="utf-8")


def _suffix(tokenizer: Any, template: str) -> tuple[int, ...]:
    """Return the ids that every reconstructor prompt ends in, whatever the explanation.

    A tokenizer may merge the end of the explanation with the template after it (``.</``), so the
    suffix is what the prompts of several explanations have in common.
    """
    endings = ("a", "a.", "a!", 'a"', "1", "a\n")
    prompts = [list(tokenizer.encode(template.replace(EXPLANATION_SLOT, end))) for end in endings]
    common: list[int] = []
    for column in zip(*(reversed(ids) for ids in prompts), strict=False):
        if len(set(column)) > 1:
            break
        common.append(column[0])
    return tuple(reversed(common))
