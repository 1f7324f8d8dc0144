"""What every row of an output depends on, as plain data: compared when a run goes on.

A manifest is a nested mapping (input, models, prompt, sampling, batch size, versions); the finished
file carries it in its metadata. Where it differs, rows of two kinds would end up in one file: so
the difference is shown and nothing is written.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import NLAError

VERSION = 1
_PACKAGES = ("nnsight-nla", "nnsight", "transformers", "torch", "pyarrow")


def versions() -> dict[str, str]:
    """The versions of what the rows are made with."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Where two manifests differ, a line each: ``sampling.seed: 0 before, 1 now``.

    >>> differences({"chunk": 8, "input": {"name": "a"}}, {"chunk": 8, "input": {"name": "b"}})
    ["input.name: 'a' before, 'b' now"]
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    return [
        f"{name}: {old.get(name)!r} before, {new.get(name)!r} now"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to mix rows of two kinds.

    Raises:
        NLAError: The manifests differ; lists where.
    """
    found = differences(before, now)
    if found:
        listed = "\n".join(f"  {line}" for line in found)
        raise NLAError(
            f"{where} was begun with other settings:\n{listed}\nGo on with those, choose another "
            f"output, or delete it to begin anew."
        )


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Which part of how many; the chunks ``part - 1``, ``part - 1 + parts``, ... are its own.

    >>> parse_shard("2/3")
    (2, 3)

    Raises:
        NLAError: It is not of the form ``i/n``.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise NLAError(
            f"shard {shard!r}: expected i/n, such as 1/2 on one machine and 2/2 on another."
        )
    return part, parts


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
