"""Load the tokenizer, configuration and nnsight model of a Hub id, folder or live model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.checkpoint import DEPTH_SLOT, Checkpoint
from ..errors import CheckpointError
from . import hosts

if TYPE_CHECKING:
    from nnsight import TransformersModel


def load_tokenizer(
    source: str | Path | TransformersModel, checkpoint: Checkpoint, *, trust: bool = False
) -> Any:
    """Return the tokenizer of `source`, or its base model's if it ships without one.

    Args:
        source: A Hub id, a folder, or a live model.
        checkpoint: Names the base model.
        trust: Whether code in the repository may run; if not, needing it is an error.

    Raises:
        CheckpointError: Neither has a readable tokenizer.
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
    for name in dict.fromkeys(filter(None, [_expanded(source), checkpoint.base_model])):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust)
        except Exception as error:  # tokenizers raises plain Exceptions on a damaged file.
            tried.append(f"{name}: {_first_line(error)}")
            continue
        # For a folder that has only a config.json, transformers 5 returns an empty tokenizer.
        if set(tokenizer.get_vocab()) - set(tokenizer.get_added_vocab()):
            return tokenizer
        tried.append(f"{name}: no tokenizer files")
    raise CheckpointError(
        f"No tokenizer for {source}. Tried {'; '.join(tried)}. Put the base model's tokenizer "
        "files into the checkpoint's folder, or pass a TransformersModel(..., tokenizer=...)."
    )


def at_depth(
    source: str | Path | TransformersModel, checkpoint: Checkpoint, load: dict[str, Any]
) -> Checkpoint:
    """Fill in a template's ``{depth_pct}``; a verbalizer has as many blocks as its target.

    Raises:
        CheckpointError: The template has this slot, and the configuration cannot be read.
    """
    if DEPTH_SLOT not in checkpoint.template:
        return checkpoint
    if not isinstance(source, str | Path):
        return checkpoint.at_depth(hosts.text_config(source).num_hidden_layers)
    from transformers import AutoConfig

    options = {name: load[name] for name in ("revision",) if name in load}
    trust = load.get("trust_remote_code", False)
    try:
        config = AutoConfig.from_pretrained(_expanded(source), trust_remote_code=trust, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{checkpoint.where('template')} has {DEPTH_SLOT}, which needs the number of blocks, "
            f"and the configuration of {str(source)!r} could not be read: {_first_line(error)} "
            f"Replace {DEPTH_SLOT} with the number."
        ) from error
    return checkpoint.at_depth(config.get_text_config().num_hidden_layers)


def load_model(
    source: str | Path | TransformersModel,
    tokenizer: Any,
    peft: str | None,
    load: dict[str, Any],
) -> TransformersModel:
    """Return the nnsight model of `source` without its weights; a live model as it is.

    Raises:
        CheckpointError: The configuration cannot be read.
    """
    if not isinstance(source, str | Path):
        hosts.text_config(source)
        if peft is not None or load:
            given = ", ".join([*(["peft"] if peft else []), *load])
            raise CheckpointError(
                f"{given} cannot be applied to a model that is already loaded. Load it yourself: "
                "TransformersModel(..., peft=...), or pass its path instead."
            )
        return source
    if peft is not None:
        need_peft(peft)
    from huggingface_hub.errors import StrictDataclassError
    from nnsight import TransformersModel

    try:
        # Without this option, transformers asks on the terminal whether to run remote code.
        load = {"trust_remote_code": False, **load}
        return TransformersModel(
            _expanded(source), task="text-generation", tokenizer=tokenizer, peft=peft, **load
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(
            f"The configuration of {str(source)!r} could not be read: {_first_line(error)} With no "
            "network, download the repository elsewhere and pass its folder."
        ) from error


def need_peft(adapter: str | Path) -> None:
    """Check that PEFT is installed, which adapters need.

    Raises:
        CheckpointError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise CheckpointError(
            f"{adapter} is an adapter, which needs the package peft. Install it: "
            "pip install 'nnsight-nla[adapters]'."
        )


def _expanded(source: str | Path) -> str:
    """Return a folder's path with ``~`` expanded, or the Hub id unchanged."""
    folder = Path(source).expanduser()
    return str(folder if folder.exists() else source)


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0]
