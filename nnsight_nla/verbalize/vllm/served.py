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
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...core.locks import Lock
from ...errors import CheckpointError, HostError, VerbalizationError, shown
from ...remote.ndif import ATTEMPTS, retries, transient
from . import receipts
from .requests import Output
from .server import RECEIPTS, VERBALIZER
from .settings import Settings

if TYPE_CHECKING:
    import httpx

    from ..verbalizer import Verbalizer
    from .requests import Measured, Request

CONCURRENCY = 64
"""Requests under way at a time, unless ``vllm={"concurrency": n}`` says otherwise."""
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
            VerbalizationError: There is another option.
        """
        others = sorted(set(given) - {"concurrency"})
        if others:
            raise VerbalizationError(
                f"vllm={shown(dict(given))}: options of vLLM itself belong to the server's command "
                "(nnsight-nla serve AV -- --max-num-seqs 512). Here only 'concurrency' is one."
            )
        self._url, self._verbalizer = url.rstrip("/"), verbalizer
        self._concurrency = int(given.get("concurrency", CONCURRENCY))
        self._name: str | None = None
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

    def start(self) -> None:
        """Check, once, that the server runs this verbalizer with this injection.

        Raises:
            CheckpointError: It runs another one.
            HostError: It does not answer, or serves no verbalizer.
        """
        if self._name is not None:
            return
        with _client(self._url) as client:
            said, self._name = _get(client, VERBALIZER), _served(client)["id"]
        expected = Settings.of(self._verbalizer.checkpoint, self._verbalizer.prompt).text
        if said["settings"] != expected:
            self._name = None
            raise CheckpointError(
                f"The server at {self._url} writes vectors as {said['settings']}, this verbalizer "
                f"needs {expected}. Start one of its own: nnsight-nla serve "
                f"{self._verbalizer.runtime.name}."
            )
        self._dtype = getattr(torch, said["dtype"])

    def run(
        self, rows: Sequence[int], request: Callable[[int], Request]
    ) -> Generator[tuple[int, Output], None, None]:
        """Yield each row's number and its output, in the order in which they finish."""
        with _client(self._url, self._concurrency) as client:

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
                # Closing the connections aborts on the server what is still under way.
                client.close()

    def receipts(self, keys: Sequence[int]) -> dict[int, Measured]:
        """Return what was written for each of these vectors, as far as that is known."""
        with _client(self._url) as client:
            return receipts.merged(_post(client, RECEIPTS, {"keys": list(keys)})["receipts"])

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


def source_at(url: str) -> str:
    """Return the path or id of the verbalizer that a server runs: its adapter, if it is one.

    Raises:
        HostError: The server does not answer, or serves no verbalizer.
    """
    with _client(url.rstrip("/")) as client:
        _get(client, VERBALIZER)
        return str(_served(client)["root"])


def _served(client: httpx.Client) -> dict[str, Any]:
    """Return the entry of the served model; of the adapter, if there is one."""
    listed = _get(client, "/v1/models")["data"]
    return next((each for each in listed if each.get("parent")), listed[0])


def _packed(rows: torch.Tensor) -> str:
    """Return rows as the server reads them: a sparse tensor, saved, in base 64."""
    file = io.BytesIO()
    torch.save(rows.to_sparse(), file)
    return base64.b64encode(file.getvalue()).decode("ascii")


def _client(url: str, connections: int = 1) -> httpx.Client:
    import httpx

    key = os.environ.get("VLLM_API_KEY")
    return httpx.Client(
        base_url=url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(_TIMEOUT, connect=10.0),
        limits=httpx.Limits(max_connections=connections),
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
        if error.response.status_code == 404:
            raise HostError(
                f"{client.base_url} has no {path}: it was not started to serve a verbalizer. Start "
                "it with: nnsight-nla serve AV"
            ) from error
        raise HostError(
            f"{client.base_url} refused a request ({error.response.status_code}): "
            f"{error.response.text[:300]}"
        ) from error
    except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed.
        raise HostError(
            f"{client.base_url} did not answer ({ATTEMPTS} tries); last: {type(error).__name__}: "
            f"{error}. Is the server running? nnsight-nla serve AV"
        ) from error


def _may_help(error: BaseException) -> bool:
    import httpx

    busy = isinstance(error, httpx.HTTPStatusError) and error.response.status_code == _BUSY
    return busy or transient(error)
