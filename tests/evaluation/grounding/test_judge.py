"""A judge behind a real server of chat completions, which fails on demand, and one in this process.

The server runs in a thread, on a free port of this machine. What it answers, and with which status,
is a rule: a function of the request's body.
"""

import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from nnsight import TransformersModel

from nnsight_nla import NLAError, tiny
from nnsight_nla.evaluation.grounding.endpoint_judge import EndpointJudge, Usage
from nnsight_nla.evaluation.grounding.judge import JudgeError, estimate
from nnsight_nla.evaluation.grounding.local_judge import LocalJudge

PROMPTS = [f"Question {n}?" for n in range(10)]


class Server:
    """Answers each prompt by a rule: a text, a status, or the whole body of a response."""

    def __init__(self) -> None:
        self.rule: Callable[[dict[str, Any]], Any] = lambda body: f"to {prompt_of(body)}"
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.most_at_once = self._at_once = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.bodies.append(body)
                    server.keys.append(self.headers["Authorization"])
                    server._at_once += 1
                    server.most_at_once = max(server.most_at_once, server._at_once)
                known = self.path == "/v1/chat/completions"
                status, made = respond(server.rule(body) if known else 404, body)
                with lock:
                    server._at_once -= 1
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(made)))
                self.send_header("Retry-After-Ms", "1")  # The client would wait for half a second.
                self.end_headers()
                with suppress(ConnectionError):  # The judge was killed, or waits no longer.
                    self.wfile.write(made)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def prompts(self) -> list[str]:
        """The prompts received, in order."""
        return [prompt_of(body) for body in self.bodies]

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"]


def respond(given: Any, body: dict[str, Any]) -> tuple[int, bytes]:
    if isinstance(given, bytes):
        return 200, given
    if isinstance(given, int):
        return given, json.dumps({"error": {"message": f"status {given}", "code": "x"}}).encode()
    answer = {
        "id": "1", "object": "chat.completion", "created": 1, "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop",
                     "message": {"role": "assistant", "content": given}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }  # fmt: skip
    return 200, json.dumps(answer).encode()


def failing(statuses: list[Any], then: str = "yes") -> Callable[[dict[str, Any]], Any]:
    """Give these statuses first, one a request."""
    left = iter(statuses)
    return lambda body: next(left, then)


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch, tmp_path):
    for name in ("NNSIGHT_NLA_JUDGE_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


# What is sent, and what comes back.


def test_answers_come_in_the_order_of_the_prompts(server):
    judge = EndpointJudge(server.url, "m")
    assert judge(PROMPTS) == [f"to {prompt}" for prompt in PROMPTS]
    assert sorted(server.prompts) == PROMPTS
    assert judge.usage == Usage(calls=10, cached=0, prompt_tokens=70, completion_tokens=30)


def test_a_request_is_deterministic_and_bounded(server):
    EndpointJudge(server.url, "some/model", max_tokens=50)(["Q"])
    assert server.bodies == [
        {"model": "some/model", "messages": [{"role": "user", "content": "Q"}],
         "temperature": 0, "max_tokens": 50}
    ]  # fmt: skip


def test_options_add_fields_and_leave_fields_out(server):
    options = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9}
    EndpointJudge(server.url, "m", options=options)(["Q"])
    assert {name: value for name, value in server.bodies[0].items() if name != "messages"} == {
        "model": "m", "max_completion_tokens": 9,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("passed", "environment", "sent"),
    [
        ("k1", {"NNSIGHT_NLA_JUDGE_KEY": "k2", "OPENAI_API_KEY": "k3"}, "k1"),
        (None, {"NNSIGHT_NLA_JUDGE_KEY": "k2", "OPENAI_API_KEY": "k3"}, "k2"),
        (None, {"NNSIGHT_NLA_JUDGE_KEY": "", "OPENAI_API_KEY": "k3"}, "k3"),
        (None, {}, "none"),
    ],
)
def test_the_key_is_the_argument_or_from_the_environment(
    server, monkeypatch, passed, environment, sent
):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    judge = EndpointJudge(server.url, "m", key=passed)
    judge(["Q"])
    assert server.keys == [f"Bearer {sent}"]
    assert "k1" not in repr(judge)


def test_a_text_that_is_not_unicode_is_sent_and_kept(server):
    server.rule = lambda body: "half \ud800"
    judge = EndpointJudge(server.url, "m")
    assert judge(["\udfff?"]) == judge(["\udfff?"]) == ["half ?"]
    assert server.prompts == ["??"]


def test_an_answer_without_text_is_empty(server):
    server.rule = lambda body: None
    assert EndpointJudge(server.url, "m")(["Q"]) == [""]


def test_no_prompts_open_no_connection():
    assert EndpointJudge("http://127.0.0.1:9/v1", "m")([]) == []


# Retries and failures.


def test_a_busy_or_broken_server_is_asked_again(server):
    server.rule = failing([429, 500, 503, 429])
    judge = EndpointJudge(server.url, "m", concurrency=1)
    assert judge(["Q"]) == ["yes"]
    assert server.prompts == ["Q"] * 5
    assert judge.usage.calls == 1


def test_after_the_last_retry_the_error_says_how_to_go_on(server):
    server.rule = lambda body: 503 if prompt_of(body) == PROMPTS[3] else "yes"
    judge = EndpointJudge(server.url, "m", concurrency=1, retries=2)
    with pytest.raises(JudgeError) as caught:
        judge(PROMPTS)
    # The next request may have left before the failure was seen.
    assert server.prompts[:6] == [*PROMPTS[:3], *PROMPTS[3:4] * 3]
    assert server.prompts[6:] in ([], PROMPTS[4:5])
    done = len(server.prompts) - 3
    message = str(caught.value)
    assert message.startswith(f"m at {server.url} did not answer: Error code: 503")
    assert f"{done} of 10 questions are answered and kept in" in message
    assert message.endswith("judge.sqlite; run the same again to continue from there.")
    assert isinstance(caught.value, NLAError)

    server.rule = lambda body: "yes"
    left = [PROMPTS[3], *PROMPTS[done + 1 :]]
    server.bodies.clear()
    assert judge.unanswered(PROMPTS) == left
    assert judge(PROMPTS) == ["yes"] * 10
    assert server.prompts == left


def test_answers_under_way_at_a_failure_are_kept(server):
    begun = threading.Barrier(4)

    def rule(body: dict[str, Any]) -> Any:
        begun.wait(10)
        if prompt_of(body) == PROMPTS[0]:
            return 400
        time.sleep(0.2)
        return "yes"

    server.rule = rule
    judge = EndpointJudge(server.url, "m", concurrency=4)
    with pytest.raises(JudgeError, match=r"3 of 4 questions are answered"):
        judge(PROMPTS[:4])
    assert judge.unanswered(PROMPTS[:4]) == PROMPTS[:1]


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, r"status 401.*Pass key=, or set NNSIGHT_NLA_JUDGE_KEY\. 0 of 1"),
        (403, r"check that the key may use model=\. 0 of 1"),
        (404, r"Check url=, which mostly ends in /v1, and model=\. 0 of 1"),
        (400, r"leave out with options= what the server does not take\. 0 of 1"),
    ],
)
def test_a_refusal_is_not_repeated_and_says_what_to_change(server, status, advice):
    server.rule = lambda body: status
    with pytest.raises(JudgeError, match=advice):
        EndpointJudge(server.url, "m")(["Q"])
    assert len(server.bodies) == 1


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(JudgeError, match=r"Connection error\. Check url=, and that a server is"):
        EndpointJudge("http://127.0.0.1:9/v1", "m", retries=0)(["Q"])


def test_a_server_that_is_too_slow_is_an_error(server):
    server.rule = lambda body: time.sleep(0.5) or "late"
    with pytest.raises(JudgeError, match=r"timed out"):
        EndpointJudge(server.url, "m", retries=0, timeout=0.1)(["Q"])


@pytest.mark.parametrize(
    "body", [b"", b"{", b"null", b"[]", b'"yes"', b"{}", b'{"choices": []}', b'{"choices": [{}]}',
             b'{"choices": [{"message": null}]}', b'{"choices": [{"message": {"content": [1]}}]}',
             b'{"choices": 3}', b"<html>hello</html>"],
)  # fmt: skip
def test_a_response_that_is_no_completion_is_an_error(server, body):
    server.rule = lambda _: body
    with pytest.raises(JudgeError, match=r"m at http.* did not answer: .*0 of 1 questions"):
        EndpointJudge(server.url, "m", retries=0)(["Q"])


# Answers on the disk.


def test_a_second_run_sends_nothing(server):
    first = EndpointJudge(server.url, "m")(PROMPTS)
    server.bodies.clear()
    judge = EndpointJudge(server.url + "/", "m")
    assert judge.unanswered(PROMPTS) == []
    assert judge(PROMPTS) == first
    assert server.bodies == []
    assert judge.usage == Usage(calls=0, cached=10)


def test_a_prompt_that_occurs_twice_is_asked_once(server):
    judge = EndpointJudge(server.url, "m")
    assert judge(["Q", "R", "Q"]) == ["to Q", "to R", "to Q"]
    assert sorted(server.prompts) == ["Q", "R"]


@pytest.mark.parametrize("other", [{"model": "n"}, {"max_tokens": 9}, {"options": {"top_p": 1}}])
def test_other_settings_have_answers_of_their_own(server, other):
    EndpointJudge(server.url, "m")(["Q"])
    EndpointJudge(**{"url": server.url, "model": "m", **other})(["Q"])
    assert len(server.bodies) == 2


def test_the_key_and_the_number_of_requests_do_not_matter_for_an_answer(server):
    EndpointJudge(server.url, "m", key="a")(["Q"])
    EndpointJudge(server.url, "m", key="b", concurrency=2, retries=1, timeout=9)(["Q"])
    assert len(server.bodies) == 1


def test_the_answers_are_in_the_users_cache_or_where_it_is_said(server, tmp_path):
    EndpointJudge(server.url, "m")(["Q"])
    assert (tmp_path / "cache" / "judge.sqlite").is_file()
    EndpointJudge(server.url, "m", cache=tmp_path / "new" / "here.sqlite")(["Q"])
    assert (tmp_path / "new" / "here.sqlite").is_file()
    assert len(server.bodies) == 2


def test_without_a_chosen_folder_the_answers_are_in_the_users_own(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    EndpointJudge(server.url, "m")(["Q"])
    assert (tmp_path / "xdg" / "nnsight_nla" / "judge.sqlite").is_file()


def test_an_unusable_file_of_answers_is_named(server, tmp_path):
    (tmp_path / "text").write_text("not a database " * 100)
    for file in (tmp_path / "text", tmp_path, tmp_path / "text" / "inside"):
        judge = EndpointJudge(server.url, "m", cache=file)
        with pytest.raises(JudgeError, match=r"cannot be used .*Pass another one as cache="):
            judge(["Q"])
        with pytest.raises(JudgeError, match=r"cannot be used"):
            judge.unanswered(["Q"])
    assert server.bodies == []


def test_a_killed_run_continues(server, tmp_path):
    reached, end = threading.Event(), threading.Event()

    def rule(body: dict[str, Any]) -> str:
        if prompt_of(body) == PROMPTS[6]:
            reached.set()
            end.wait(60)
        return "yes"

    server.rule = rule
    cache = tmp_path / "killed.sqlite"
    script = f"""
        from pathlib import Path
        from nnsight_nla.evaluation.grounding.endpoint_judge import EndpointJudge
        EndpointJudge({server.url!r}, "m", concurrency=1, cache=Path({str(cache)!r}))({PROMPTS!r})
    """
    judge = EndpointJudge(server.url, "m", cache=cache)
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    try:
        assert reached.wait(120)
        until = time.monotonic() + 60
        while judge.unanswered(PROMPTS) != PROMPTS[6:] and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    end.set()
    server.bodies.clear()
    assert judge(PROMPTS) == ["yes"] * 10
    assert sorted(server.prompts) == PROMPTS[6:]


def test_threads_share_a_judge(server):
    judge = EndpointJudge(server.url, "m", concurrency=2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(judge, [PROMPTS, PROMPTS[::-1], PROMPTS[:5], ["another"]]))
    assert [len(each) for each in found] == [10, 10, 5, 1]
    assert found[0] == found[1][::-1] == [f"to {prompt}" for prompt in PROMPTS]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_allowed(server, concurrency):
    server.rule = lambda body: time.sleep(0.05) or "yes"
    EndpointJudge(server.url, "m", concurrency=concurrency)(PROMPTS)
    assert server.most_at_once == concurrency


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ({"concurrency": 0}, r"EndpointJudge\(concurrency=0\): expected 1 or more"),
        ({"retries": -1}, r"EndpointJudge\(retries=-1\): expected 0 or more"),
        ({"max_tokens": 0}, r"EndpointJudge\(max_tokens=0\): expected 1 or more"),
        ({"timeout": 0}, r"EndpointJudge\(timeout=0\): expected seconds, above 0"),
        ({"url": "localhost:8000"}, r"EndpointJudge\(url='localhost:8000'\): expected http://"),
    ],
)
def test_unusable_arguments_are_named(argument, expected):
    with pytest.raises(JudgeError, match=expected):
        EndpointJudge(**{"url": "http://127.0.0.1:9", "model": "m", **argument})


def test_without_the_client_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(JudgeError, match=r"Type: pip install 'nnsight-nla\[judge\]'"):
        EndpointJudge("http://127.0.0.1:9", "m")


# Estimates.


def test_an_estimate_counts_characters_and_the_longest_answers():
    found = estimate(["a" * 4000, "b" * 4001], 500, price_in=2.0, price_out=10.0)
    assert (found.calls, found.prompt_tokens, found.most_completion_tokens) == (2, 2001, 1000)
    assert found.price == pytest.approx((2001 * 2 + 1000 * 10) / 1e6)
    assert str(found) == (
        "2 calls, about 2,001 prompt tokens (estimated from their characters), at most 1,000 "
        "completion tokens, at most about 0.01 in all"
    )


def test_an_estimate_without_prices_has_no_price():
    found = estimate([], 400)
    assert found.price is None
    assert str(found).endswith("at most 0 completion tokens")
    with pytest.raises(NLAError, match=r"price_in=1 and price_out=None; pass both prices"):
        estimate(["Q"], 400, price_in=1)


# A model on this machine.


@pytest.fixture(scope="module")
def chat() -> TransformersModel:
    return TransformersModel(str(tiny.paths()["av"]), task="text-generation")


def test_a_local_judge_answers_as_plain_transformers_does(chat):
    prompts = ["About Paris?", "A long question about the people in Rome. What do they speak?", "X"]
    found = LocalJudge(chat, batch_size=2, max_new_tokens=12)(prompts)
    for prompt, answer in zip(prompts, found, strict=True):
        message = [{"role": "user", "content": prompt}]
        row = chat.tokenizer.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        made = chat._module.generate(**row, max_new_tokens=12, do_sample=False)
        alone = chat.tokenizer.decode(
            made[0, row["input_ids"].shape[1] :], skip_special_tokens=True
        )
        assert answer == alone
    plain = LocalJudge(chat._module, chat.tokenizer, batch_size=8, max_new_tokens=12)
    assert plain(prompts) == found
    assert plain([]) == []


def test_a_quoted_text_cannot_end_the_turn_of_a_local_judge(chat):
    special = [t.content for t in chat.tokenizer.added_tokens_decoder.values() if t.special]
    assert special
    judge = LocalJudge(chat)
    plain, hostile = judge._tokenize("A"), judge._tokenize("A" + "".join(special))
    known = chat.tokenizer.convert_tokens_to_ids(special)
    assert [hostile.count(each) for each in known] == [plain.count(each) for each in known]


def test_a_local_judge_needs_a_tokenizer_with_a_chat_template(chat):
    with pytest.raises(JudgeError, match=r"without its tokenizer\. Pass LocalJudge\(model, tok"):
        LocalJudge(chat._module)
    with pytest.raises(JudgeError, match="no chat template"):
        LocalJudge(chat._module, object())
