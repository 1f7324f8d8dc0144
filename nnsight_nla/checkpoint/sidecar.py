"""Find and parse the sidecar file of a checkpoint.

A checkpoint folder or Hub repository has a file ``nla_meta.yaml`` (or ``nla_meta.json``) next to
its weights, and a data set ``rows.parquet`` has ``rows.parquet.nla_meta.yaml``. What the file says
is read by `dialects`::

    file = find("ceselder/nanonla-l24-av-qwen3-8b", presets=())
    content = read(file)

A file is untrusted input. Its size is bounded before it is parsed, and that of its content before
it is built: a few hundred bytes of YAML can name each list ten times in the next one.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from pathlib import Path

import yaml

from .. import _compat
from ..errors import CheckpointError

SIDECARS = ("nla_meta.yaml", "nla_meta.json")
DATASET_SUFFIX = ".nla_meta.yaml"
MOST = 1 << 20
"""The largest file of settings, in bytes, and the largest content; real ones are a few thousand."""
_NOT_SETTINGS = "a sidecar is a few thousand. Use the file that ships with the checkpoint."
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
_DIGITS = 400


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
        raise CheckpointError(_no_such(name))
    return _download(name, presets)


def read(file: Path) -> object:
    """Read and parse a sidecar, or another small file of settings; see `parse`.

    Raises:
        CheckpointError: It is too large, or malformed.
        OSError: It cannot be read.
    """
    return parse(read_bytes(file), file)


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a file of settings.

    Raises:
        CheckpointError: They are more than `MOST`.
    """
    with file.open("rb") as opened:
        raw = opened.read(MOST + 1)
    if len(raw) > MOST:
        raise CheckpointError(f"{file} is larger than {MOST:,} bytes; {_NOT_SETTINGS}")
    return raw


def parse(raw: bytes, file: Path) -> object:
    """Parse the bytes of a sidecar as YAML, or as JSON if the file name ends in ``.json``.

    Raises:
        CheckpointError: They are malformed, or say more than a sidecar has to say.
    """
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text) if file.suffix == ".json" else _load_yaml(text, file)
    except CheckpointError:
        raise
    except Exception as error:  # yaml passes on what int(), datetime() and deep nesting raise.
        kind = "JSON" if file.suffix == ".json" else "YAML"
        raise CheckpointError(f"{file} is not readable as {kind}: {error}") from error


def _load_yaml(text: str, file: Path) -> object:
    """Load YAML as `yaml.safe_load`, after measuring what its aliases expand to."""
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MOST:
            raise CheckpointError(
                f"{file}: its aliases expand to more than {MOST:,} characters; {_NOT_SETTINGS}"
            )
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of characters and nodes below `node` once every alias is expanded."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag in _NUMBERS and len(node.value) > _DIGITS:
            raise ValueError(f"a number of {len(node.value)} characters")
        return len(node.value) + 1
    if id(node) not in known:
        known[id(node)] = math.inf  # If it contains itself.
        children = node.value
        if isinstance(node, yaml.MappingNode):
            children = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_size(child, known) for child in children)
    return known[id(node)]


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


def stored(where: str | Path, name: str, *, needed: bool = False) -> Path | None:
    """Return a file of a folder or a Hub repository, ``None`` if there is none.

    With no network, a file that is neither cached nor `needed` counts as absent.
    """
    folder = Path(where).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    if not is_hub_id(str(where)):
        raise CheckpointError(_no_such(str(where)))
    try:
        return fetch(str(where), name)
    except OSError as error:
        if not needed:
            return None
        raise CheckpointError(
            f"{no_folder(str(where))}: {name} is not in the local Hub cache and could not be "
            f"fetched ({type(error).__name__}). With no network, download the repository elsewhere "
            "and pass its folder."
        ) from error


def no_folder(name: str) -> str:
    """Say that `name` is no folder, and begin a sentence on what it is as a Hub id."""
    return f"There is no folder {_looked_at(name)}. As a Hub id, {name!r}"


def _no_such(name: str) -> str:
    return (
        f"{name!r} is neither a folder on this machine (looked at {_looked_at(name)}) nor a Hub id "
        "of the form 'owner/name'."
    )


def _looked_at(name: str) -> str:
    """Return the absolute path, and the folder next to it that may have been meant."""
    path = Path(name).expanduser().absolute()
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        names = []
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"{path}; did you mean {path.parent / close[0]}?" if close else str(path)


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
            f"{no_folder(name)}: {' or '.join(SIDECARS)} is not in the local Hub cache "
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
