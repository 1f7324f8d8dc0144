"""Talking to an NDIF host: retries while it is away, errors that say what to type, and its status.

nnsight reports a host's troubles in many ways (a refused connection, a closed websocket, a failed
poll, a `RemoteError` that wraps one of these). Here they are two kinds: *transient* ones are tried
again, a bounded number of times; whatever is left becomes one `HostError`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar

from .. import _compat
from ..core.injection import OPERATIONS
from ..errors import HostError

T = TypeVar("T")

ATTEMPTS = 4
"""How often one request is tried."""
_LONGEST_WAIT = 8.0


def send(request: Callable[[], T], what: str) -> T:
    """Run one remote request, again while the host is only away for a moment.

    Args:
        request: Makes the request and returns its result.
        what: The request in words, for the error.

    Raises:
        HostError: The host stayed away, or the request itself failed there.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    _ship_operations()
    retrying = Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.5, max=_LONGEST_WAIT),
        retry=retry_if_exception(transient),
        reraise=True,
    )
    try:
        return retrying(request)
    except Exception as error:
        if not (transient(error) or isinstance(error, _compat.remote_error())):
            raise
        tries = retrying.statistics.get("attempt_number", 1)
        last = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise HostError(
            f"{what} at {_compat.host()} failed ({tries} of {ATTEMPTS} tries); last: "
            f"{type(error).__name__}: {last[-1].strip()}"
        ) from error


def _ship_operations() -> None:
    """Let requests carry third parties' injections as source: no host has their modules."""
    import nnsight

    for operation in OPERATIONS.values():
        home = getattr(operation, "__module__", None) or "torch"
        if isinstance(operation, FunctionType) and home.partition(".")[0] != "torch":
            nnsight.register(home)


def transient(error: BaseException) -> bool:
    """Whether trying again may help: the host is away, restarting, or dropped the connection."""
    import httpx
    from websocket import WebSocketException

    if isinstance(error, _compat.remote_error()):
        cause = error.__cause__
        return any(word in str(error) for word in _compat.TRANSIENT) or (
            cause is not None and transient(cause)
        )
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(
        error, ConnectionError | TimeoutError | httpx.TransportError | WebSocketException
    )


@dataclass(frozen=True)
class HostStatus:
    """What the configured NDIF host can do for an NLA right now."""

    host: str
    """Its address."""
    reachable: bool
    """Whether it answered."""
    target: str
    """The state of the verbalizer's target there, ``absent`` where it is not deployed."""
    verbalizer: str
    """The state of the verbalizer, or of its base model where it is an adapter."""
    here: bool
    """Whether the verbalizer's weights are loaded in this process."""

    @property
    def ways(self) -> tuple[str, ...]:
        """What can be done now, in words."""
        found: list[str] = []
        if self.target == RUNNING:
            found.append("target on the host, verbalizer here: model.trace(..., remote=True)")
        if self.verbalizer == RUNNING:
            found.append("verbalizer on the host: NLA(..., remote=True)")
        return tuple(found) or ("target and verbalizer both here: nothing of yours runs there",)

    def __str__(self) -> str:
        state = "reachable" if self.reachable else "not reachable"
        lines = [f"{self.host} ({state})", f"  target: {self.target}"]
        lines += [f"  verbalizer: {self.verbalizer}", *(f"  - {way}" for way in self.ways)]
        return "\n".join(lines)


RUNNING = "RUNNING"
_ABSENT = "absent"


def status(av: Any, base_model: str | None) -> HostStatus:
    """Ask the configured host whether it runs the target and the verbalizer.

    Args:
        av: The verbalizer's nnsight model.
        base_model: The target's name, as the sidecar gives it.
    """
    import contextlib
    import io

    import nnsight

    # nnsight says on standard error that a host is down; here that is part of the answer.
    with contextlib.redirect_stderr(io.StringIO()):
        raw = nnsight.status(raw=True) or {}
    deployed = {
        _repository(each.get("model_key", "")): str(each.get("application_state", _ABSENT))
        for each in _deployments(raw)
    }
    return HostStatus(
        _compat.host(),
        bool(raw),
        deployed.get(base_model or "", _ABSENT),
        deployed.get(str(av.repo_id), _ABSENT),
        bool(av.dispatched),
    )


def _deployments(raw: Any) -> list[dict[str, Any]]:
    found = raw.get("deployments", {}) if isinstance(raw, dict) else {}
    return list(found.values()) if isinstance(found, dict) else list(found)


def _repository(model_key: str) -> str:
    """The repository in a model key such as ``nnsight.…:{"repo_id": …}``."""
    try:
        return str(json.loads(model_key[model_key.index("{") :])["repo_id"])
    except (ValueError, KeyError, TypeError):
        return model_key
