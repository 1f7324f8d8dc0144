"""The call that gives a reading again, as code for its reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..core.sampling import Sampling

_LONGEST = 10_000
"""The longest call that is kept, in characters; a longer text is not repeated."""
_DEFAULTS = {"positions": "all", "generate": None, "layer": None, "claims": "check"}


def call(prompt: Any, options: Mapping[str, Any], sampling: Sampling) -> str | None:
    """Return the call, for ``model`` and ``nla`` as they were.

    Args:
        prompt: The text, the token ids or the messages.
        options: Of `NLA.read`; those that are its defaults are left out.
        sampling: How the explanations' tokens were chosen.
    """
    plain = {name: _plain(value) for name, value in options.items()}
    given = {name: value for name, value in plain.items() if _DEFAULTS.get(name) != value}
    lines = ["from nnsight_nla import Sampling"] if sampling != Sampling() else []
    shown = [f"nla.read(model, {_plain(prompt)!r}"]
    shown += [f"{name}={value!r}" for name, value in given.items()]
    if lines:
        values = [(each, getattr(sampling, each.name)) for each in fields(sampling)]
        changed = [f"{each.name}={value!r}" for each, value in values if value != each.default]
        shown.append(f"sampling=Sampling({', '.join(changed)})")
    lines.append(f"reading = {', '.join(shown)})")
    made = "\n".join(lines)
    return made if len(made) <= _LONGEST else None


def _plain(value: Any) -> Any:
    """Return a tensor or an array as lists."""
    return value.tolist() if hasattr(value, "tolist") else value
