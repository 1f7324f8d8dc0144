"""``nnsight-nla evaluate --grounded``: figures of truth, and a judge that is asked."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from nnsight_nla import tiny
from nnsight_nla.cli import app
from nnsight_nla.errors import NLAError
from tests.helpers.tiny_rows import tiny_rows, write_rows

runner = CliRunner()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, pair):
    source = tiny_rows(pair[0], documents=16, per_document=5)
    return write_rows(source, tmp_path_factory.mktemp("rows") / "rows.parquet")


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of chat completions that supports every claim and always takes the first choice."""
    monkeypatch.setenv("NNSIGHT_NLA_CACHE", str(tmp_path))
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompt = body["messages"][0]["content"]
            asked.append(body)
            answer = "A" if "one letter" in prompt else "no"
            if "JSON" in prompt:
                answer = '[{"claim": "It is about something.", "verdict": "supported"}]'
            made = {
                "id": "1", "object": "chat.completion", "created": 0, "model": body["model"],
                "choices": [{"index": 0, "finish_reason": "stop",
                             "message": {"role": "assistant", "content": answer}}],
                "usage": {"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10},
            }  # fmt: skip
            text = json.dumps(made).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}/v1", asked
    made.shutdown()
    made.server_close()


def run(*arguments):
    found = runner.invoke(app, [str(each) for each in arguments])
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    assert found.exit_code == 0, found.output
    return found


def command(rows, *more):
    paths = tiny.paths()
    return [
        "evaluate", paths["av"], rows, "--ar", paths["ar"], "--held-out", "1", "--limit", "12",
        "--grounded", *more,
    ]  # fmt: skip


def test_the_figures_of_truth(rows):
    found = json.loads(run(*command(rows, "--json")).stdout)["checkpoints"]
    (figures,) = found.values()
    grounded = figures["grounded"]
    assert grounded["text"]["subject"]["value"] > 0.9
    assert grounded["source"]["likelihood"]["value"] > 0.9
    assert grounded["shuffled"]["subject"]["value"] < 0.5
    assert grounded["judge"] is None


def test_the_table(rows):
    shown = run(*command(rows)).stdout
    assert "Compared with the texts: 12 rows of 12 documents" in shown
    assert re.search(r"subject is right +1\.000 \[", shown)
    assert "chance 0.25" in shown


def test_a_judge_says_what_it_takes_and_is_asked(rows, server):
    url, asked = server
    found = run(*command(rows, "--judge", url, "--judge-model", "m"))
    assert "calls, about" in found.stderr
    assert "claims that the text supports" in found.stdout
    assert {body["model"] for body in asked} == {"m"}
    # The answers are kept: nothing is asked twice.
    count = len(asked)
    again = json.loads(run(*command(rows, "--judge", url, "--judge-model", "m", "--json")).stdout)[
        "checkpoints"
    ]
    assert len(asked) == count
    (figures,) = again.values()
    assert figures["grounded"]["judge"]["claims"]["precision"]["value"] == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--grounded", "--judge", "http://127.0.0.1:9/v1"], "--judge URL and --judge-model NAME"),
        (["--grounded", "--judge-model", "m"], "--judge URL and --judge-model NAME"),
        (["--judge", "http://127.0.0.1:9/v1", "--judge-model", "m"], "Add --grounded"),
    ],
)
def test_half_a_judge_is_refused(rows, options, message):
    with pytest.raises(NLAError, match=message):
        run("evaluate", tiny.paths()["av"], rows, *options)


def test_rows_without_texts_are_refused(tmp_path, rows):
    import pyarrow.parquet as pq

    table = pq.read_table(rows).drop_columns(["detokenized_text_truncated"])
    bare = tmp_path / "bare.parquet"
    pq.write_table(table, bare)
    beside = rows.with_name(rows.name + ".nla_meta.yaml")
    if beside.exists():
        bare.with_name(bare.name + ".nla_meta.yaml").write_text(beside.read_text())
    with pytest.raises(NLAError, match="has no column 'detokenized_text_truncated'"):
        run(*command(bare))
