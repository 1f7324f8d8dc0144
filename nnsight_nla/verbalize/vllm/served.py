"""Run requests on a vLLM server, through its OpenAI-compatible completions.

The server was started by ``nnsight-nla serve`` (or with the same options). A prompt travels as
``prompt_embeds``, in which only the rows' own entries are stored. Some requests are under way at a
time, so that the server is never short of work and never flooded; what fails because the server is
away or busy is sent again a few times, and then raises a `HostError`, which ``bulk.run`` waits out.

An API key, if the server wants one, is read from ``VLLM_API_KEY``, as the server itself does.
"""

from __future__ import annotations

import base64
import io
import os
import socket
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...core.locks import Lock
from ...core.numeric import is_int
from ...errors import CheckpointError, HostError, NLAWarning, VerbalizationError, shown
from ...remote.ndif import ATTEMPTS, retries, transient
from . import receipts
from .launch import name_of
from .requests import Output
from .server import RECEIPTS, VERBALIZER
from .settings import Settings

if TYPE_CHECKING:
    import httpx

    from ..verbalizer import Verbalizer
    from .requests import Measured, Request

CONCURRENCY = 64
"""Requests under way at a time, unless ``vllm={"concurrency": n}`` says otherwise."""
KEY = "VLLM_API_KEY"
"""The environment variable with the key that a server asks for."""
_TIMEOUT = 600.0
_BUSY = 429


class ServedEngine:
    """A server that runs one verbalizer."""

    def __init__(self, url: str, verbalizer: Verbalizer, given: Mapping[str, Any]) -> None:
        """Check the options; nothing is sent.

        Args:
            url: The server's address, without ``/v1``.
            verbalizer: What the server has to run.
            given: ``concurrency`` is the only option.

        Raises:
            VerbalizationError: It is no address, or there is another option.
        """
        others = sorted(set(given) - {"concurrency"})
        if others:
            raise VerbalizationError(
                f"vllm={shown(dict(given))}: options of vLLM itself belong to the server's command "
                "(nnsight-nla serve AV -- --max-num-seqs 512). Here only 'concurrency' is one."
            )
        self._url, self._verbalizer = address(url), verbalizer
        self._concurrency = given.get("concurrency", CONCURRENCY)
        if not is_int(self._concurrency, 1):
            raise VerbalizationError(
                f"vllm={{'concurrency': {shown(self._concurrency)}}}: expected the number of "
                "requests under way at a time, from 1."
            )
        self._name: str | None = None
        self._said, self._context = "", 0
        self._dtype: torch.dtype | None = None
        self._guard = Lock()
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the server computes in."""
        if self._dtype is None:
            self.start()
        assert self._dtype is not None
        return self._dtype

    @property
    def context(self) -> int:
        """The most tokens that a prompt and its reply may have."""
        return self._context

    def start(self) -> None:
        """Check, once, that the server runs this verbalizer with this injection.

        Raises:
            CheckpointError: It runs another one.
            HostError: It does not answer, or serves no verbalizer.

        Warns:
            NLAWarning: The server's sidecar is another file.
        """
        if self._name is not None:
            return
        with _client(self._url) as client:
            said, model = _described(client), _served(client)
        self._check_same(Settings.read(said["settings"]))
        self._said, self._dtype = said["settings"], getattr(torch, said["dtype"])
        self._context, self._name = model["max_model_len"], model["id"]

    def _check_same(self, served: Settings) -> None:
        mine = name_of(self._verbalizer)
        expected = Settings.of(self._verbalizer.checkpoint, self._verbalizer.prompt, mine)
        different = expected.different(served)
        if different:
            listed = "; ".join(f"{field}: {b}, not {a}" for field, (a, b) in different.items())
            raise CheckpointError(
                f"The server at {self._url} runs {served.name}, which is another verbalizer than "
                f"{mine} ({listed}). Start one of its own: nnsight-nla serve {mine}."
            )
        if len({expected.sidecar_hash, served.sidecar_hash} - {None}) > 1:
            warnings.warn(
                f"The sidecar of {served.name}, which the server at {self._url} runs, is another "
                f"file than that of {mine}. Check that both are the same verbalizer; without a "
                "path, NLA(url=...) reads the server's own.",
                NLAWarning,
                stacklevel=2,
            )

    def run(
        self, rows: Sequence[int], request: Callable[[int], Request]
    ) -> Generator[tuple[int, Output], None, None]:
        """Yield each row's number and its output, in the order in which they finish."""
        connections = _Connections()
        with _client(self._url, self._concurrency, connections) as client:

            def completed(row: int) -> Output:
                return self._complete(client, request(row))

            pool = self._threads()
            futures = {pool.submit(completed, row): row for row in rows}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:
                    future.cancel()
                # The server aborts what is still under way, and the threads are free again.
                connections.cut()
                client.close()

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known.

        Raises:
            CheckpointError: The server now runs another verbalizer.
        """
        with _client(self._url) as client:
            answer = _post(client, RECEIPTS, {"keys": list(keys)})
        if answer["settings"] != self._said:
            self.close()
            raise CheckpointError(
                f"The server at {self._url} was restarted with another verbalizer while it had "
                "requests; their texts were thrown away. Start it again as it was, or make a new "
                "NLA(url=...)."
            )
        return receipts.merged(answer["receipts"])

    def use_adapter(self, folder: Path) -> None:
        """Refuse: the server keeps the adapter that it was started with.

        Raises:
            VerbalizationError: Always.
        """
        raise VerbalizationError(
            f"The server at {self._url} keeps the adapter that it was started with, so it cannot "
            f"use {folder}. Run vLLM in this process: NLA('path or id', engine='vllm')."
        )

    def info(self) -> dict[str, Any]:
        """Return the server's address."""
        return {"url": self._url, "concurrency": self._concurrency}

    def close(self) -> None:
        """Forget what the server said; it goes on running."""
        self._name = self._dtype = None
        with self._guard.held():
            if self._pool is not None:
                self._pool[1].shutdown(wait=False)
            self._pool = None

    def _threads(self) -> ThreadPoolExecutor:
        """Return the threads that all calls share, each with one request under way.

        Their queue is first in, first out, so the requests of an earlier call come first.
        """
        with self._guard.held():
            process = os.getpid()  # A forked process has none of the threads.
            if self._pool is None or self._pool[0] != process:
                name = "nnsight-nla-vllm"
                self._pool = process, ThreadPoolExecutor(self._concurrency, thread_name_prefix=name)
            return self._pool[1]

    def _complete(self, client: httpx.Client, request: Request) -> Output:
        body = {
            **request.parameters(),
            "model": self._name,
            "prompt_embeds": _packed(request.rows),
            "return_token_ids": True,
            "vllm_xargs": request.draw or None,
            "cache_salt": request.salt,
        }
        if request.compared:
            body |= {
                "logprobs": 1,
                "logprob_token_ids": list(request.compared),
                "return_tokens_as_token_ids": True,
            }
        body = {name: value for name, value in body.items() if value is not None}
        said = _post(client, "/v1/completions", body)["choices"][0]
        first = said["logprobs"]["top_logprobs"][0] if request.compared else {}
        # The names are those of `return_tokens_as_token_ids`: "token_id:17".
        return Output(
            said["token_ids"], {int(k.partition(":")[2]): each for k, each in first.items()}
        )


def address(url: object) -> str:
    """Return a server's address without the path of vLLM's API, which is often pasted with it.

    Raises:
        VerbalizationError: It is no address.

    >>> address("http://localhost:8000/v1/")
    'http://localhost:8000'
    """
    import httpx

    text = str(url).rstrip("/").removesuffix("/v1").rstrip("/")
    try:
        parsed = httpx.URL(text)
    except httpx.InvalidURL:
        parsed = httpx.URL()
    if not isinstance(url, str) or parsed.scheme not in ("http", "https") or not parsed.host:
        raise VerbalizationError(
            f"url={shown(url)}: expected the address that nnsight-nla serve prints, such as "
            "url='http://localhost:8000'."
        )
    return text


def source_at(url: str) -> str:
    """Return the path or id of the verbalizer that a server runs: its adapter, if it is one.

    Raises:
        CheckpointError: It is a folder that this machine does not have.
        HostError: The server does not answer, or serves no verbalizer.
    """
    with _client(address(url)) as client:
        _described(client)
        root = str(_served(client)["root"])
    if Path(root).is_absolute() and not Path(root).is_dir():
        raise CheckpointError(
            f"The server at {address(url)} runs {root}, a folder that is not on this machine. Pass "
            "what has the verbalizer's sidecar and tokenizer here: NLA('path or id', url=...)."
        )
    return root


def _described(client: httpx.Client) -> dict[str, Any]:
    said = _get(client, VERBALIZER)
    if not isinstance(said, dict) or not said.get("settings"):
        raise _serves_none(client)
    return said


def _served(client: httpx.Client) -> dict[str, Any]:
    """Return the entry of the served model; of the adapter, if there is one."""
    listed = _get(client, "/v1/models")["data"]
    return next((each for each in listed if each.get("parent")), listed[0])


def _packed(rows: torch.Tensor) -> str:
    """Return rows as the server reads them: a sparse tensor, saved, in base 64."""
    file = io.BytesIO()
    torch.save(rows.to_sparse(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


class _Connections:
    """The connections of a client, to cut them while threads wait for answers.

    Closing a socket does not end the wait of a thread that reads from it, nor tell the server.
    """

    def __init__(self) -> None:
        self._streams: list[Any] = []

    def note(self, request: httpx.Request) -> None:
        """Note the connection that is made for a request; one of httpx's event hooks."""
        request.extensions["trace"] = self._trace

    def cut(self) -> None:
        """Cut all of them."""
        for stream in self._streams:
            with suppress(OSError):
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _trace(self, event: str, info: Mapping[str, Any]) -> None:
        if event in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            self._streams.append(info["return_value"])


def _client(url: str, number: int = 1, connections: _Connections | None = None) -> httpx.Client:
    import httpx

    key = os.environ.get(KEY)
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(_TIMEOUT, connect=10.0),
        limits=httpx.Limits(max_connections=number),
        event_hooks={} if connections is None else {"request": [connections.note]},
        trust_env=False,
    )


def _get(client: httpx.Client, path: str) -> dict[str, Any]:
    return _sent(client, "GET", path, None)


def _post(client: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    return _sent(client, "POST", path, body)


def _sent(
    client: httpx.Client, method: str, path: str, body: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Send one request, and send it again while the server is away or busy.

    Raises:
        HostError: It stayed so, or the server refused.
    """
    import httpx

    def once() -> dict[str, Any]:
        answer = client.request(method, path, json=body)
        answer.raise_for_status()
        return answer.json()

    try:
        return retries(_may_help)(once)
    except httpx.HTTPStatusError as error:
        raise _refusal(client, path, error.response) from error
    except ValueError as error:  # No JSON.
        raise _serves_none(client) from error
    except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed.
        tries = f" ({ATTEMPTS} tries)" if _may_help(error) else ""
        raise HostError(
            f"{client.base_url} did not answer{tries}; last: {type(error).__name__}: {error}. Is "
            "the server running? nnsight-nla serve AV"
        ) from error


def _serves_none(client: httpx.Client) -> HostError:
    return HostError(
        f"{client.base_url} answers, but not as a server of a verbalizer. Start one with: "
        "nnsight-nla serve AV"
    )


def _refusal(client: httpx.Client, path: str, answer: httpx.Response) -> HostError:
    where, status = client.base_url, answer.status_code
    if status == 404 and path in (VERBALIZER, RECEIPTS):
        return HostError(
            f"{where} has no {path}: it was not started to serve a verbalizer. Start it with: "
            "nnsight-nla serve AV"
        )
    if status in (401, 403):
        key = "refused the API key in" if KEY in os.environ else "wants an API key, and has none in"
        return HostError(
            f"{where} {key} the environment variable {KEY} ({status}). Set it to the server's key: "
            f"export {KEY}=..."
        )
    return HostError(f"{where} refused a request ({status}): {answer.text[:300]}")


def _may_help(error: BaseException) -> bool:
    import httpx

    busy = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _BUSY
    return busy or transient(error)
