"""Identify an input or a model by short hashes of its content.

The result is plain data that does not depend on where a file lies, so two machines that keep the
same files in different folders agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import _compat
from ..checkpoint import sidecar
from ..errors import NLAError
from . import hosts
from .adapter import ADAPTER_CONFIG, AdapterModel
from .loading import load_config

if TYPE_CHECKING:
    from nnsight import TransformersModel

_RESTORE = (
    "Nothing of the changed file is kept. Restore the file and rerun with the same arguments to "
    "resume, or choose another output for the new one."
)
_BLOCK = 1 << 20
_DENSE = 64 * _BLOCK
_STRIDE = 4 * _BLOCK
_WEIGHTS = ("*.safetensors", "*.bin", "config.json", "adapter_config.json", "ar_meta.json")
_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*",
    "merges.txt", "*.model",
)  # fmt: skip


def fingerprint_file(path: Path, limit: int | None = None) -> dict[str, Any]:
    """Return a file's name, size and hash; the whole file is read.

    Args:
        path: The file.
        limit: Read at most this many bytes.
    """
    digest = hashlib.blake2b(digest_size=16)
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK if limit is None else min(_BLOCK, limit - size)):
            digest.update(block)
            size += len(block)
    return {"name": path.name, "bytes": size, "blake2b": digest.hexdigest()}


class Unchanged:
    """Checks that a file still is what it was when it was opened.

    Whatever else writes the file, rows that were read before a check that passes are those of the
    file that the fingerprint names.
    """

    def __init__(self, path: Path, identity: dict[str, Any], *, may_grow: bool = False) -> None:
        """Remember the file.

        Args:
            path: The file.
            identity: Its fingerprint, from `fingerprint_file`.
            may_grow: Whether bytes may have been added at its end, which are never read.
        """
        self._path, self._may_grow = path, may_grow
        self._identity = {name: identity[name] for name in ("bytes", "blake2b")}
        self._seen = self._stat()

    def __call__(self, *, thorough: bool = False) -> None:
        """Check the file: its size and date, and, where these differ, its content.

        Args:
            thorough: Check the content in any case.

        Raises:
            NLAError: It was changed, or is gone.
        """
        try:
            seen = self._stat()
            if seen == self._seen and not thorough:
                return
            limit = self._identity["bytes"] if self._may_grow else None
            found = fingerprint_file(self._path, limit)
        except OSError as problem:
            raise NLAError(
                f"{self._path} could not be read again ({problem.strerror}), so it is not known "
                f"whether its rows are those that were counted. {_RESTORE}"
            ) from problem
        if {name: found[name] for name in self._identity} != self._identity:
            raise NLAError(
                f"{self._path} was changed while it was read: it had {self._identity['bytes']:,} "
                f"bytes when it was opened and has {seen[0]:,} now, with another content. "
                f"{_RESTORE}"
            )
        self._seen = seen

    def _stat(self) -> tuple[int, int, int]:
        stat = self._path.stat()
        return stat.st_size, stat.st_mtime_ns, stat.st_ino


class UnchangedFiles:
    """The same for several files that are one input."""

    def __init__(self, files: Iterable[Path]) -> None:
        """Remember the files; all of them are read."""
        found = {path: fingerprint_file(path) for path in sorted(files)}
        self._checks = [Unchanged(path, identity) for path, identity in found.items()]
        digest = hashlib.blake2b(repr(list(found.values())).encode(), digest_size=16)
        self.identity = {
            "bytes": sum(each["bytes"] for each in found.values()),
            "blake2b": digest.hexdigest(),
        }
        """Their size and a hash of their names and contents."""

    def __call__(self, *, thorough: bool = False) -> None:
        """Check every file.

        Raises:
            NLAError: One was changed, or is gone.
        """
        for check in self._checks:
            check(thorough=thorough)


def fingerprint_model(model: TransformersModel, *sources: object) -> dict[str, Any]:
    """Return a model's name, dtype and weights; of an adapter, also the name of its base.

    Weights are identified by the files of a local folder, by the Hub's commit, or, for a live
    module that has neither, by a sample of every parameter.

    Args:
        model: The nnsight model.
        sources: What else it was made from; only local folders count.
    """
    base = model.target if isinstance(model, AdapterModel) else model
    name, adapter = hosts.describe(base), hosts.adapter_of(model)
    made_from = [each for each in (*sources, adapter) if each is not None]
    folders = [Path(name), *(Path(str(each)) for each in made_from)]
    found = {path.resolve(): fingerprint_folder(path) for path in folders if path.is_dir()}
    weights = "+".join(found.values())
    if Path(name).resolve() not in found:
        module = hosts.module_of(base)
        commit = _compat.commit_hash(module)
        weights = "+".join(filter(None, [commit or _parameters(module), weights]))
    if adapter is not None and not Path(adapter).is_dir() and sidecar.is_hub_id(adapter):
        weights = "+".join(filter(None, [weights, _commit_of_adapter(adapter)]))
    named = (
        {"name": hosts.short_name(name)}
        if adapter is None
        else {"name": hosts.short_name(adapter), "base": hosts.short_name(name)}
    )
    return {
        **named,
        "weights": weights or "not known",
        "dtype": str(hosts.dtype_of(model)).removeprefix("torch."),
    }


def _commit_of_adapter(adapter: str) -> str | None:
    """Return the commit of an adapter on the Hub, which is in the path of its cached files."""
    file = sidecar.stored(adapter, ADAPTER_CONFIG)
    return None if file is None else file.parent.name


def fingerprint_base(name: str | Path) -> str:
    """Return a hash of a model's weights, configuration and tokenizer, or its Hub commit.

    Args:
        name: A folder or a Hub id.
    """
    if Path(name).expanduser().is_dir():
        return fingerprint_folder(Path(name).expanduser(), (*_WEIGHTS, *_TOKENIZER))
    config = load_config(name, {})
    return f"{name} at {_compat.commit_of(config) or 'an unknown commit'}"


def fingerprint_folder(path: Path, patterns: Sequence[str] = _WEIGHTS) -> str:
    """Return a hash of a folder's files; by default those of its weights and configuration.

    Files up to 64 MiB are read completely; of larger ones 64 KiB in every 4 MiB, which reaches
    every large matrix: a fine-tuned model differs everywhere in the matrices that were trained.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({each for pattern in patterns for each in path.glob(pattern)}):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as opened:
            if size <= _DENSE:
                digest.update(opened.read())
                continue
            for start in range(0, size, _STRIDE):
                opened.seek(start)
                digest.update(opened.read(_BLOCK // 16))
    return digest.hexdigest()


def _parameters(module: torch.nn.Module) -> str | None:
    """Return a hash of up to 1024 values of every parameter, ``None`` on the meta device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, each in module.named_parameters():
        if each.device.type == "meta":
            return None
        flat = each.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 1024)].float().cpu().contiguous()
        digest.update(f"{name} {tuple(each.shape)}\n".encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()
