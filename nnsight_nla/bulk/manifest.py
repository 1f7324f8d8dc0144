"""Everything that the rows of an output depend on, as plain data.

A manifest is a nested mapping (input, models, prompt, sampling, batch size, versions), and the
finished file carries it in its metadata. A call that resumes an output must have the same one:
otherwise the differences are listed and nothing is written, so rows of two kinds never mix.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import NLAError, shown

VERSION = 1
_LONG, _AROUND = 160, 20
_PACKAGES = ("nnsight-nla", "nnsight", "transformers", "torch", "pyarrow")


def versions() -> dict[str, str]:
    """Return the versions of the packages that the rows are made with."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List where two manifests differ, a line each: ``sampling.seed: 0 before, 1 now``.

    >>> differences({"chunk": 8, "input": {"name": "a"}}, {"chunk": 8, "input": {"name": "b"}})
    ["input.name: 'a' before, 'b' now"]
    """
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    pairs = (_parts_that_differ(old.get(name), new.get(name)) for name in changed)
    return [f"{name}: {a!r} before, {b!r} now" for name, (a, b) in zip(changed, pairs, strict=True)]


def check_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Refuse to mix rows of two kinds.

    Raises:
        NLAError: The manifests differ; lists the differences.
    """
    found = differences(before, now)
    if found:
        listed = "\n".join(f"  {line}" for line in found)
        raise NLAError(
            f"{where} was made with other settings:\n{listed}\nRerun with the original settings "
            "to resume, choose another output, or delete it to start over."
        )


def parse_shard(shard: str | None) -> tuple[int, int]:
    """Return the shard's number and the number of shards.

    Shard i of n has the chunks ``i - 1``, ``i - 1 + n``, ``i - 1 + 2 * n``, ...

    >>> parse_shard("2/3")
    (2, 3)

    Raises:
        NLAError: It is not of the form ``i/n``.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", shard or "1/1")
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise NLAError(
            f'shard={shown(shard)}: expected "i/n", such as "1/2" on one machine and "2/2" on '
            "another."
        )
    return part, parts


def _parts_that_differ(before: Any, now: Any) -> tuple[Any, Any]:
    """Cut two long texts to where they differ, with a few characters around it."""
    if not (isinstance(before, str) and isinstance(now, str)) or len(before) + len(now) <= _LONG:
        return before, now
    start = _length_of_common_start(before, now)
    end = _length_of_common_start(before[start:][::-1], now[start:][::-1])
    first = max(start - _AROUND, 0)

    def cut(text: str) -> str:
        last = len(text) - max(end - _AROUND, 0)
        return f"{'…' * (first > 0)}{text[first:last]}{'…' * (last < len(text))}"

    return cut(before), cut(now)


def _length_of_common_start(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((place for place, (x, y) in pairs if x != y), min(len(a), len(b)))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
