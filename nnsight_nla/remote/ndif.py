"""Send requests to an NDIF host, retry transient failures, and report the host's status.

nnsight reports failures of a host in many ways (a refused connection, a closed websocket, a failed
poll, a `RemoteError` that wraps one of these). This module distinguishes two kinds: *transient*
failures are retried a limited number of times; all others become a `HostError`.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import _compat
from ..core.injection import OPERATIONS
from ..errors import HostError

if TYPE_CHECKING:
    from tenacity import Retrying

T = TypeVar("T")

ATTEMPTS = 4
"""The number of times that a request is tried."""
_LONGEST_WAIT = 8.0


def send(request: Callable[[], T], what: str) -> T:
    """Run one remote request, and retry it after transient failures.

    Args:
        request: Makes the request and returns its result.
        what: Names the request in the error.

    Raises:
        HostError: The host stayed unavailable, or the request failed there.
    """
    _ship_operations()
    retrying = retries(transient)
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


def retries(may_help: Callable[[BaseException], bool]) -> Retrying:
    """Return what calls a request up to `ATTEMPTS` times, and waits longer each time.

    Args:
        may_help: Whether another try may help after this error; the last error is raised as it is.
    """
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    return Retrying(
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=0.5, max=_LONGEST_WAIT),
        retry=retry_if_exception(may_help),
        reraise=True,
    )


def _ship_operations() -> None:
    """Ship third-party injection operations as source, because hosts lack their modules."""
    import nnsight

    for operation in OPERATIONS.values():
        home = getattr(operation, "__module__", None) or "torch"
        if isinstance(operation, FunctionType) and home.partition(".")[0] != "torch":
            nnsight.register(home)


def transient(error: BaseException) -> bool:
    """Return whether a retry may help: the host is away, restarting, or disconnected."""
    import httpx
    from websocket import WebSocketException

    if isinstance(error, _compat.remote_error()):
        cause = error.__cause__
        return any(word in str(error) for word in _compat.TRANSIENT) or (
            cause is not None and transient(cause)
        )
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    if isinstance(error, httpx.UnsupportedProtocol) or _speaks_no_tls(error):
        return False
    return isinstance(
        error, ConnectionError | TimeoutError | httpx.TransportError | WebSocketException
    )


def _speaks_no_tls(error: BaseException) -> bool:
    """Return whether no secure connection can be made, such as one of https to a port of http."""
    import httpx

    seen: BaseException | None = error if isinstance(error, httpx.ConnectError) else None
    while seen is not None:
        if isinstance(seen, ssl.SSLError) and not isinstance(seen, ssl.SSLEOFError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@dataclass(frozen=True)
class HostStatus:
    """The state of the configured NDIF host for one NLA."""

    host: str
    """Its address."""
    reachable: bool
    """Whether it answered."""
    target: str
    """The state of the verbalizer's target there; ``absent`` if it is not deployed."""
    verbalizer: str
    """The state of the verbalizer there; for an adapter, that of its base model."""
    here: bool
    """Whether the verbalizer's weights are loaded in this process."""

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways in which the host can be used now, in words."""
        found: list[str] = []
        if self.target == RUNNING:
            found.append("target on the host, verbalizer here: model.trace(..., remote=True)")
        if self.verbalizer == RUNNING:
            found.append("verbalizer on the host: NLA(..., remote=True)")
        return tuple(found) or ("run target and verbalizer here: the host runs neither of them",)

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

    Raises:
        HostError: The host's answer is not a status.
    """
    import contextlib
    import io

    import nnsight

    # nnsight reports an unreachable host on standard error; here it is part of the result.
    with contextlib.redirect_stderr(io.StringIO()):
        try:
            raw = nnsight.status(raw=True) or {}
        except ValueError as error:  # No JSON.
            raise _strange(error) from error
    deployed = {
        _repository(str(each.get("model_key", ""))): str(each.get("application_state", _ABSENT))
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
    found = raw.get("deployments", {}) if isinstance(raw, dict) else raw
    listed: Any = list(found.values()) if isinstance(found, dict) else found
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise _strange(raw)
    return listed


def _strange(reply: object) -> HostError:
    return HostError(
        f"{_compat.host()} answered with something that is no status of an NDIF host: "
        f"{str(reply)[:80]!r}. Check its address: nnsight.CONFIG.API.HOST."
    )


def _repository(model_key: str) -> str:
    """Return the repository in a model key such as ``nnsight.…:{"repo_id": …}``."""
    try:
        return str(json.loads(model_key[model_key.index("{") :])["repo_id"])
    except (ValueError, KeyError, TypeError):
        return model_key
