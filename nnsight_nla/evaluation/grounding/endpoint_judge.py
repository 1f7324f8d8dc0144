"""A judge behind a server with an OpenAI-compatible API.

Every answer is stored on disk immediately, so an interrupted run can continue, and a second run
costs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.numeric import is_int, is_real
from ...errors import shown
from ...progress import progress
from ...storage.cache import cache_folder
from .judge import JudgeError

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types.chat import ChatCompletion

_EXTRA = "pip install 'nnsight-nla[judge]'"
_KEYS = ("NNSIGHT_NLA_JUDGE_KEY", "OPENAI_API_KEY")
_ADVICE = {
    400: "Check model=, and leave out with options= what the server does not take. ",
    401: f"Pass key=, or set {_KEYS[0]}. ",
    403: f"Pass key=, or set {_KEYS[0]}; check that the key may use model=. ",
    404: "Check url=, which mostly ends in /v1, and model=. ",
}
"""What to do about the status of a response."""


@dataclass
class Usage:
    """What a judge has used since it was made."""

    calls: int = 0
    """The answers that the server gave."""
    cached: int = 0
    """The answers that were already on the disk."""
    prompt_tokens: int = 0
    """As the server counts them; 0 if it does not."""
    completion_tokens: int = 0
    """As the server counts them; 0 if it does not."""


@dataclass
class EndpointJudge:
    """A model behind an OpenAI-compatible server (chat completions), asked at temperature 0.

    A failed request is repeated by OpenAI's client: after 429 and 5xx, and without a response.
    Threads may share a judge, and processes may share its file of answers.
    """

    url: str
    """The base of the server's addresses, such as ``http://127.0.0.1:8000/v1``."""
    model: str
    """The name of the model there."""
    key: str | None = field(default=None, repr=False)
    """The key; ``None`` takes ``NNSIGHT_NLA_JUDGE_KEY`` or ``OPENAI_API_KEY`` from the environment,
    which are sent to `url` whatever it is, and without them "none", for local servers."""
    concurrency: int = 8
    """The number of requests at the same time."""
    retries: int = 5
    """How often a failed request is repeated."""
    timeout: float = 60.0
    """Seconds to wait for one response."""
    max_tokens: int = 400
    """The most tokens of an answer."""
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """More fields of the request; ``None`` leaves a field out. A model that reasons may take
    ``{"max_tokens": None, "max_completion_tokens": 4000, "temperature": None}``."""
    cache: str | Path | None = None
    """The file with the answers; ``None`` is ``judge.sqlite`` in ``NNSIGHT_NLA_CACHE`` or the
    user's cache."""
    usage: Usage = field(default_factory=Usage, init=False)
    """The usage so far."""

    def __post_init__(self) -> None:
        """Check the arguments and that OpenAI's client is installed.

        Raises:
            JudgeError: An argument is unusable, or the package is missing.
        """
        for name, valid, expected in (
            ("concurrency", is_int(self.concurrency, 1), "1 or more"),
            ("retries", is_int(self.retries, 0), "0 or more"),
            ("max_tokens", is_int(self.max_tokens, 1), "1 or more"),
            ("timeout", is_real(self.timeout) and self.timeout > 0, "seconds, above 0"),
            ("url", self.url.startswith(("http://", "https://")), "http://... or https://..."),
        ):
            if not valid:
                value = shown(getattr(self, name))
                raise JudgeError(f"EndpointJudge({name}={value}): expected {expected}.")
        if find_spec("openai") is None:
            raise JudgeError(f"EndpointJudge needs the package openai. Type: {_EXTRA}")
        file = cache_folder() / "judge.sqlite" if self.cache is None else Path(self.cache)
        self._file = file.expanduser()

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """Return the answers to prompts; each distinct prompt is sent only once.

        Raises:
            JudgeError: The server did not answer, or the file of answers cannot be used. The
                answers so far are kept.
        """
        from openai import OpenAI

        with self._opened() as kept:
            answers = self._known(kept, prompts)
            self.usage.cached += len(answers)
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in answers]
            if missing:
                with OpenAI(
                    api_key=self._key(), base_url=self.url,
                    max_retries=self.retries, timeout=self.timeout,
                ) as client:  # fmt: skip
                    self._ask_all(client, missing, answers, kept)
        return [answers[prompt] for prompt in prompts]

    def unanswered(self, prompts: Sequence[str]) -> list[str]:
        """Return the different prompts whose answers are not on the disk yet.

        Raises:
            JudgeError: The file of answers cannot be used.
        """
        with self._opened() as kept:
            answers = self._known(kept, prompts)
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in answers]

    def _ask_all(
        self,
        client: OpenAI,
        missing: Sequence[str],
        answers: dict[str, str],
        kept: sqlite3.Connection,
    ) -> None:
        """Add the missing answers; after a failure no more are asked for."""
        from openai import OpenAIError

        total, failed = len(answers) + len(missing), None
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            asked = {pool.submit(self._ask, client, prompt): prompt for prompt in missing}
            with progress("judging", total=total, unit="answer", initial=len(answers)) as bar:
                for future in as_completed(asked):
                    if future.cancelled():
                        continue
                    try:
                        made = future.result()
                    except (OpenAIError, JudgeError) as error:
                        failed = failed or error
                        for other in asked:
                            other.cancel()
                        continue
                    self._count(made)
                    answer = _unicode(made.choices[0].message.content or "")
                    row = (self._hash(asked[future]), answer)
                    with kept:  # A commit for each, since the next one may be minutes away.
                        kept.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", row)
                    answers[asked[future]] = answer
                    bar.advance(1)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise JudgeError(
                f"{self.model} at {self.url} did not answer: {failed} {_advice(failed)}"
                f"{len(answers)} of {total} questions are answered and kept in {self._file}; run "
                "the same again to continue from there."
            ) from failed

    def _ask(self, client: OpenAI, prompt: str) -> ChatCompletion:
        try:
            made: Any = client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": _unicode(prompt)}],
                extra_body=self._settings(),
            )
        except ValueError as error:  # The client raises what its JSON decoder raises.
            raise JudgeError(f"its response cannot be read: {error}.") from error
        # The client does not check what is in a response.
        try:
            answer = made.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            answer = ...
        if not (answer is None or isinstance(answer, str)):
            raise JudgeError(f"its response is not a chat completion: {shown(made)}.")
        return made

    def _count(self, made: ChatCompletion) -> None:
        self.usage.calls += 1
        if made.usage is not None:
            self.usage.prompt_tokens += made.usage.prompt_tokens or 0
            self.usage.completion_tokens += made.usage.completion_tokens or 0

    def _settings(self) -> dict[str, Any]:
        settings = {"temperature": 0, "max_tokens": self.max_tokens, **self.options}
        return {name: value for name, value in settings.items() if value is not None}

    def _key(self) -> str:
        named = (os.environ.get(name) for name in _KEYS)
        return self.key or next(filter(None, named), "none")

    @contextmanager
    def _opened(self) -> Generator[sqlite3.Connection, None, None]:
        """Open the file of answers; SQLite keeps other threads, processes and kills apart."""
        try:
            with suppress(OSError):  # SQLite says that it cannot open the file.
                self._file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._file, timeout=60)) as kept:
                kept.execute(
                    "CREATE TABLE IF NOT EXISTS answers (hash TEXT PRIMARY KEY, answer TEXT)"
                )
                yield kept
        except sqlite3.Error as error:
            raise JudgeError(
                f"The file of answers {self._file} cannot be used ({error}). Pass another one as "
                "cache=, on a local disk."
            ) from error

    def _known(self, kept: sqlite3.Connection, prompts: Sequence[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for prompt in dict.fromkeys(prompts):
            where = (self._hash(prompt),)
            row = kept.execute("SELECT answer FROM answers WHERE hash = ?", where).fetchone()
            if row is not None:
                found[prompt] = row[0]
        return found

    def _hash(self, prompt: str) -> str:
        asked = [self.url.rstrip("/"), self.model, self._settings(), prompt]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def _advice(failed: Exception) -> str:
    from openai import APIConnectionError, APIStatusError

    if isinstance(failed, APIStatusError):
        return _ADVICE.get(failed.status_code, "")
    running = "Check url=, and that a server is running there. "
    return running if isinstance(failed, APIConnectionError) else ""


def _unicode(text: str) -> str:
    """Replace halves of surrogate pairs, which can be neither sent nor kept."""
    return text.encode("utf-8", "replace").decode()
