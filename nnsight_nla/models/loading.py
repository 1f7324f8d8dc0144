"""Load the tokenizer, configuration and nnsight model of a Hub id, folder or live model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ..checkpoint.checkpoint import DEPTH_SLOT, Checkpoint
from ..core.numeric import is_int
from ..errors import CheckpointError
from . import hosts

if TYPE_CHECKING:
    from nnsight import TransformersModel
    from transformers import GenerationConfig


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

    name = _expanded(source)
    ends = end_ids(name, load.get("revision"))
    try:
        # Without the first option, transformers asks on the terminal whether to run remote code.
        load = {"trust_remote_code": False, "generation_config": ends, **load}
        model = TransformersModel(
            name, task="text-generation", tokenizer=tokenizer, peft=peft, **load
        )
    except (OSError, ValueError, StrictDataclassError) as error:
        raise CheckpointError(
            f"The configuration of {str(source)!r} could not be read: {_first_line(error)} With no "
            "network, download the repository elsewhere and pass its folder."
        ) from error
    if ends is not None:  # For a model that runs on a host, whose weights are never loaded here.
        cast("Any", hosts.module_of(model)).generation_config = ends
    return model


def end_ids(source: str, revision: str | None = None) -> GenerationConfig | None:
    """Read the end and pad ids of ``generation_config.json``, and no other setting.

    Args:
        source: A Hub id or a folder.
        revision: A branch, tag or commit of the repository.

    Returns:
        Settings that have these ids only; ``None`` if there is no such file.

    Raises:
        CheckpointError: The file says something else than token ids for them.
    """
    from transformers import GenerationConfig
    from transformers.utils import cached_file

    try:
        file = cached_file(source, "generation_config.json", revision=revision)
        said: Any = json.loads(Path(str(file)).read_text("utf-8"))
    except (OSError, ValueError):  # Absent or no JSON: transformers uses the ids of config.json.
        return None
    where = f"generation_config.json of {source}"
    if not isinstance(said, dict):
        raise CheckpointError(f"{where} has a {type(said).__name__}, expected a JSON object.")
    ends, pads = (
        token_ids(said.get(name), name, where) for name in ("eos_token_id", "pad_token_id")
    )
    return GenerationConfig(eos_token_id=ends or None, pad_token_id=pads[0] if pads else None)


def token_ids(value: object, name: str, where: str) -> list[int]:
    """Return the token ids of a generation setting: one id, a list of them, or ``None``.

    Args:
        value: What the checkpoint says; a negative id means none.
        name: The setting.
        where: The file or the model that it comes from.

    Raises:
        CheckpointError: It is something else.
    """
    listed = value if isinstance(value, list) else [value]
    if not all(each is None or is_int(each) for each in listed):
        raise CheckpointError(
            f"{where} says {name}: {value!r:.80}, expected a token id or a list of them. Correct "
            "it, or remove it: the tokenizer has an end-of-sequence token too."
        )
    return [each for each in listed if each is not None and each >= 0]


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
