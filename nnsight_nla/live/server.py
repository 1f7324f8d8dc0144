"""Serve a session to browsers: one page and one WebSocket, at an address with a random token.

Write::

    session = Session(model, nla)
    serve(session, port=8010, started=print)      # http://127.0.0.1:8010/uPq.../

Who has the address has the session: it reads and runs prompts on the loaded models. What a foreign
page or another user of the machine may try is refused:

* Without the token there is nothing, not even the page.
* A WebSocket from another origin, or a request with another ``Host`` than this machine's, is
  refused, so that a page whose name is made to point here (DNS rebinding) gets nothing either.
* No header allows another origin to read anything, and the page loads nothing from anywhere.
* Requests with a body of more than a megabyte are refused before it is read; `session` bounds the
  rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import secrets
import socket as sockets
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import view
from ..errors import NLAError
from .session import Session

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.types import ASGIApp, Receive, Scope, Send
    from starlette.websockets import WebSocket

INSTALL = "pip install 'nnsight-nla[view]'"
PORT = 8010
_LARGEST = 1 << 20
"""The largest body of a request, and the largest message, in bytes."""
_MOST_UNSENT = 50_000
"""The most messages that wait for a page that does not read them."""
_TRANSPORT = Path(__file__).parent / "socket.js"
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def check_installed() -> None:
    """Raise if a package that the server needs is missing.

    Raises:
        NLAError: It is; the message says what to type.
    """
    for name in ("starlette", "uvicorn", "websockets"):
        try:
            __import__(name)
        except ImportError as error:
            raise NLAError(f"The live page needs the package {name}: {INSTALL}.") from error


def application(session: Session, token: str, *, host: str = "127.0.0.1") -> Starlette:
    """Return the ASGI application of a session.

    Args:
        session: The session.
        token: The first part of every path.
        host: The address that it listens on, whose name requests may use.
    """
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse
    from starlette.routing import Route, WebSocketRoute

    page = view.live(_TRANSPORT.read_text("utf-8"))

    async def index(_: Request) -> HTMLResponse:
        return HTMLResponse(page, headers=_HEADERS)

    async def connection(websocket: WebSocket) -> None:
        await _connected(session, websocket)

    routes = [
        Route(f"/{token}/", index, methods=["GET"]),
        WebSocketRoute(f"/{token}/socket", connection),
    ]
    made = Starlette(routes=routes)
    made.add_middleware(_Guard, host=host)
    return made


class _Guard:
    """Refuses requests of other hosts, of other origins, and with large bodies."""

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app, self._host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        from starlette.datastructures import Headers
        from starlette.responses import PlainTextResponse

        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        refused = self._refused(headers)
        if refused is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refused[1]})
        else:
            status, why = refused
            answer = PlainTextResponse(
                why + "\n", status_code=status, headers={**_HEADERS, "Connection": "close"}
            )
            await answer(scope, receive, send)

    def _refused(self, headers: Any) -> tuple[int, str] | None:
        host = headers.get("host", "")
        if not _is_own(host, self._host):
            return 421, "This server answers at its own address only."
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return 403, "This server answers its own page only."
        if "transfer-encoding" in headers:
            return 411, "A request says how long its body is."
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > _LARGEST:
            return 413, f"A request has a body of at most {_LARGEST:,} bytes."
        return None


def _is_own(host: str, bound: str) -> bool:
    """Return whether a ``Host`` header names this machine: by its loopback names if bound to them.

    >>> _is_own("127.0.0.1:8010", "127.0.0.1"), _is_own("evil.example:8010", "127.0.0.1")
    (True, False)
    >>> _is_own("10.0.0.7:8010", "0.0.0.0"), _is_own("10.0.0.7:8010", "127.0.0.1")
    (True, False)
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]").lower()
    if name in ("localhost", bound.lower()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:  # A name. One that DNS points here is not to be believed.
        return name == sockets.gethostname().lower() and not _is_loopback(bound)
    return address.is_loopback or not _is_loopback(bound)


def _is_loopback(bound: str) -> bool:
    try:
        return ipaddress.ip_address(bound).is_loopback
    except ValueError:
        return bound == "localhost"


async def _connected(session: Session, websocket: WebSocket) -> None:
    """Carry messages between a page and the session until one of them goes."""
    from starlette.websockets import WebSocketDisconnect

    await websocket.accept()
    loop = asyncio.get_running_loop()
    unsent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def send(message: dict[str, Any]) -> None:
        if unsent.qsize() > _MOST_UNSENT:
            raise NLAError("The page does not read its messages.")
        loop.call_soon_threadsafe(unsent.put_nowait, message)

    async def write() -> None:
        while True:
            text = json.dumps(await unsent.get(), ensure_ascii=False, allow_nan=False)
            await websocket.send_text(text)

    writer = asyncio.create_task(write())
    client = session.connect(send)
    try:
        while True:
            client.handle(await websocket.receive_text())
    except (WebSocketDisconnect, KeyError):  # KeyError: the message is binary.
        pass
    finally:
        client.close()
        writer.cancel()
        with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
            await writer


def serve(
    session: Session,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    started: Callable[[str], None] = print,
) -> None:
    """Serve a session until Ctrl-C.

    Args:
        session: The session.
        host: The address to listen on.
        port: The port; 0 for any that is free.
        started: Called with the address of the page when the server answers there.

    Raises:
        NLAError: A package is missing, or the port is taken.
    """
    check_installed()
    import uvicorn

    listening = _listen(host, port)
    token = secrets.token_urlsafe(16)
    name = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(
        application(session, token, host=host),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="off",
        ws="websockets-sansio",
        ws_max_size=_LARGEST,
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    with listening:
        started(f"http://{name}:{listening.getsockname()[1]}/{token}/")
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> sockets.socket:
    family = sockets.AF_INET6 if ":" in host else sockets.AF_INET
    listening = sockets.socket(family, sockets.SOCK_STREAM)
    listening.setsockopt(sockets.SOL_SOCKET, sockets.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise NLAError(
            f"Cannot listen on {host}, port={port}: {error.strerror}. Choose another port with "
            f"port={port + 1}, or any that is free with port=0."
        ) from error
    listening.listen()
    return listening
