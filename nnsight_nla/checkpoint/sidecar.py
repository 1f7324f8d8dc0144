"""Find and parse the sidecar file of a checkpoint.

A checkpoint folder or Hub repository has a file ``nla_meta.yaml`` (or ``nla_meta.json``) next to
its weights, and a data set ``rows.parquet`` has ``rows.parquet.nla_meta.yaml``. What the file says
is read by `dialects`::

    file = find("ceselder/nanonla-l24-av-qwen3-8b", presets=())
    content = parse(file.read_bytes(), file)
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from .. import _compat
from ..errors import CheckpointError

SIDECARS = ("nla_meta.yaml", "nla_meta.json")
DATASET_SUFFIX = ".nla_meta.yaml"


def find(name: str, presets: tuple[str, ...]) -> Path | None:
    """Find the sidecar file of a local folder or a Hub repository.

    Args:
        name: A folder, a sidecar file, a data set with its sidecar next to it, or a Hub id.
        presets: The Hub ids that need no sidecar.

    Returns:
        The local path of the file; ``None`` if a preset has to replace it.

    Raises:
        CheckpointError: There is no sidecar and no preset.
    """
    path = Path(name).expanduser()
    if path.is_file():
        own = path.with_name(path.name + DATASET_SUFFIX)
        if path.suffix not in (".yaml", ".yml", ".json") and not own.is_file():
            raise CheckpointError(
                f"{path} is not a sidecar and has none next to it (looked for {own.name}). Pass a "
                "folder, a data set with its sidecar, or the sidecar itself."
            )
        return own if own.is_file() else path
    if path.is_dir():
        return _find_in_folder(path)
    if not is_hub_id(name):
        raise CheckpointError(
            f"{name!r} is neither a folder on this machine (looked at {path.absolute()}) nor a Hub "
            "id of the form 'owner/name'."
        )
    return _download(name, presets)


def parse(raw: bytes, file: Path) -> object:
    """Parse the bytes of a sidecar as YAML, or as JSON if the file name ends in ``.json``.

    Raises:
        CheckpointError: They are malformed.
    """
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except Exception as error:  # yaml passes on what int(), datetime() and deep nesting raise.
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise CheckpointError(f"{file} is not readable as {kind}: {error}") from error


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form of a Hub id, ``owner/name``."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def fetch(repository: str, name: str) -> Path | None:
    """Return the local path of a file in a Hub repository.

    Returns:
        The path; ``None`` if the repository is known not to have the file.

    Raises:
        OSError: The file is not in the cache and cannot be downloaded, so it is unknown whether the
            repository has it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    if _compat.known_absent(repository, name):
        return None
    try:
        return Path(hf_hub_download(repository, name))
    except RemoteEntryNotFoundError:
        return None


def _find_in_folder(folder: Path) -> Path:
    for name in SIDECARS:
        if (folder / name).is_file():
            return folder / name
    found = sorted(folder.glob(f"*{DATASET_SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CheckpointError(
            f"{folder} has no {' or '.join(SIDECARS)}, but the sidecars of several data sets: "
            f"{', '.join(file.name for file in found)}. Pass the one that the checkpoint was "
            f"trained on: NLA(..., checkpoint='{found[0]}')."
        )
    raise CheckpointError(
        f"{folder} has no {' or '.join(SIDECARS)}. Use the folder that ships with the checkpoint, "
        "or describe it: NLA(..., checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    )


def _download(name: str, presets: tuple[str, ...]) -> Path | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError

    unreachable: Exception | None = None
    for file in SIDECARS:
        try:
            return Path(hf_hub_download(name, file))
        except RemoteEntryNotFoundError:
            continue
        except (OSError, HFValidationError) as error:  # All other errors of the Hub are OSErrors.
            unreachable = unreachable or error
    if name in presets:
        return None
    if unreachable is not None:
        raise CheckpointError(
            f"{name!r}: {' or '.join(SIDECARS)} is not in the local Hub cache "
            f"({constants.HF_HUB_CACHE}) and could not be fetched ({type(unreachable).__name__}). "
            "With no network, download the repository elsewhere and pass its folder: "
            f"NLA('/path/to/{name.split('/')[-1]}'). The embedded pair needs no network: "
            "nnsight_nla.tiny.load()."
        ) from unreachable
    raise CheckpointError(
        f"The Hub repository {name!r} has no {' or '.join(SIDECARS)} and nnsight_nla has no preset "
        f"for it (it has {', '.join(sorted(presets))}). Describe it: NLA({name!r}, "
        "checkpoint=Checkpoint(layer=..., d_model=..., ...))."
    )
