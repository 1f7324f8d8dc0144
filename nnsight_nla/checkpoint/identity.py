"""Tell whether two names mean one model: ids of the Hub, folders of its cache, copies on a disk.

Names are compared as what they name. Where they cannot decide (a folder may have any name), the
fingerprints of the two configurations do.

>>> hub_id("/cache/models--you--t/snapshots/0123abc"), hub_id("https://huggingface.co/you/t")
('you/t', 'you/t')
>>> same_model("you/t", "models--you--t/snapshots/0123abc"), same_model("you/t", "you/other")
(True, False)
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from .sidecar import is_hub_id

_CACHED = re.compile(r"(?:^|[/\\])models--(.+?)--(.+?)(?:[/\\]|$)")
_URL = re.compile(r"^(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)")
_FIELDS = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


def hub_id(name: str) -> str | None:
    """Return the Hub id that a name stands for; ``None`` for any other folder.

    Args:
        name: An id, an address of the Hub, or a path of its cache, of any machine.
    """
    found = _CACHED.search(name)
    if found:
        return f"{found[1]}/{found[2]}"
    found = _URL.match(name)
    if found:
        return found[1]
    return name if is_hub_id(name) and not Path(name).is_dir() else None


def same_model(one: str, other: str, configs: tuple[str | None, str | None] = (None, None)) -> bool:
    """Return whether two names mean one model.

    Args:
        one: A name: a Hub id, an address, or a path.
        other: Another one.
        configs: The fingerprint of each one's configuration, where the caller has it; otherwise
            that of the files on this machine is used, if there are any.
    """
    if _path(one) == _path(other):
        return True
    ids = [hub_id(_path(name)) for name in (one, other)]
    names = [(found or _path(name)).lower() for found, name in zip(ids, (one, other), strict=True)]
    if names[0] == names[1]:
        return True
    alike = Path(names[0]).name == Path(names[1]).name
    if all(ids) and not alike:
        return False
    given = zip(configs, (one, other), strict=True)
    found = [config or stored_config(name) for config, name in given]
    return found[0] == found[1] if all(found) else alike


def fingerprint(config: Any) -> str:
    """Return a hash of a model's shape, the same for copies in another dtype or quantization.

    Args:
        config: Its configuration, an object of transformers.
    """
    text = config.get_text_config()
    held = {name: getattr(text, name, None) for name in _FIELDS}
    ends = getattr(text, "eos_token_id", None)  # Tells a chat model from its base.
    held["eos_token_id"] = sorted(ends) if isinstance(ends, list | tuple) else [ends]
    return hashlib.blake2b(repr(held).encode(), digest_size=8).hexdigest()


def stored_config(name: str) -> str | None:
    """Return the fingerprint of a model on this machine; ``None`` if it is not here."""
    return _stored_config(_path(name))


@lru_cache(64)
def _stored_config(path: str) -> str | None:
    """Keep what `stored_config` found by real path: a relative name depends on the folder."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception:  # A configuration may be damaged, or of a later version, in any way.
        return None
    return fingerprint(config)


def _path(name: str) -> str:
    """Return a folder of this machine as its real path, any other name without a final slash."""
    path = Path(name).expanduser()
    return str(path.resolve()) if path.is_dir() else re.sub(r"(?<=.)[/\\]+$", "", name)
