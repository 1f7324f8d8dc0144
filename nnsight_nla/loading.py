"""Getting a half of an NLA by Hub id, folder or live model: tokenizer first, weights last."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import hosts
from .checkpoint import Checkpoint
from .errors import CheckpointError

if TYPE_CHECKING:
    from nnsight import TransformersModel


def load_tokenizer(source: str | Path | TransformersModel, checkpoint: Checkpoint) -> Any:
    """The tokenizer of `source`, or that of its base model where it ships none.

    Raises:
        CheckpointError: Neither has one that can be read.
    """
    if not isinstance(source, str | Path):
        tokenizer = getattr(source, "tokenizer", None)
        if tokenizer is None:
            raise CheckpointError(
                f"Expected a path, a Hub id or a TransformersModel with a tokenizer, got "
                f"{type(source).__name__}."
            )
        return tokenizer
    from transformers import AutoTokenizer

    tried: list[str] = []
    for name in dict.fromkeys(filter(None, [_place(source), checkpoint.base_model])):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # tokenizers raises plain Exceptions on a damaged file.
            tried.append(f"{name}: {_first_line(error)}")
            continue
        # From a folder with a config.json only, transformers 5 makes an empty tokenizer.
        if set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
            return tokenizer
        tried.append(f"{name}: no tokenizer files")
    raise CheckpointError(
        f"No tokenizer for {source}. Tried {'; '.join(tried)}. Put the base model's tokenizer "
        "files into the checkpoint's folder, or pass a TransformersModel(..., tokenizer=...)."
    )


def load_model(
    source: str | Path | TransformersModel,
    tokenizer: Any,
    peft: str | None,
    load: dict[str, Any],
) -> TransformersModel:
    """The nnsight model of `source`, without its weights; a live model is taken as it is.

    Raises:
        CheckpointError: Its configuration cannot be read.
    """
    if not isinstance(source, str | Path):
        hosts.text_config(source)
        if peft is not None or load:
            given = ", ".join([*(["peft"] if peft else []), *load])
            raise CheckpointError(
                f"{given} cannot be applied to a model that is already there. Load it yourself: "
                "TransformersModel(..., peft=...), or pass its path instead."
            )
        return source
    from huggingface_hub.errors import StrictDataclassError
    from nnsight import TransformersModel

    try:
        return TransformersModel(
            _place(source), task="text-generation", tokenizer=tokenizer, peft=peft, **load
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(
            f"The configuration of {str(source)!r} could not be read: {_first_line(error)} With no "
            "network, download the repository elsewhere and pass its folder."
        ) from error


def _place(source: str | Path) -> str:
    """A folder's path with ``~`` written out, or the Hub id as it is."""
    folder = Path(source).expanduser()
    return str(folder if folder.exists() else source)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
