"""The options that say what generates the texts: --engine, --vllm and --url."""

import json

import pandas
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from nnsight_nla import NLAError, tiny
from nnsight_nla.cli import app, options
from nnsight_nla.cli.view import _setup
from tests.helpers.vllm_server import serving

TEXT = "People in Paris speak"
AV = str(tiny.paths()["av"])


@pytest.fixture(scope="module")
def server():
    with serving() as running:
        yield running


def invoked(*words: str):
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done


def refused(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert isinstance(done.exception, NLAError), (done.output, done.exception)
    return str(done.exception)


def test_explain_and_read_take_a_server_whose_verbalizer_is_the_default(server):
    found = json.loads(invoked("explain", TEXT, "--url", server.url, "--json").stdout)
    assert found["layer"] == 3
    count = len(server.bodies)
    assert count == 1
    said = json.loads(
        invoked("read", TEXT, "--url", server.url, "--av", AV, "--position", "0,1", "--json").stdout
    )
    assert len([each for each in said["tokens"] if each["explanation"]]) == 2
    assert len(server.bodies) == count + 2


def test_run_takes_vectors_and_a_server_alone(server, tmp_path):
    save_file({"v": torch.randn(5, 128)}, tmp_path / "v.safetensors")
    output = tmp_path / "out.parquet"
    invoked("run", str(tmp_path / "v.safetensors"), str(output), "--url", server.url)
    assert len(pandas.read_parquet(output)) == 5


def test_the_page_writes_code_that_asks_the_same_server(server, model):
    texts = options.engine_of("fast", None, server.url)
    setup = _setup("tiny", [(None, None)], model, [], texts)
    assert setup.splitlines()[-1] == f"nla = NLA(engine='vllm', url='{server.url}')"
    assert "url" not in setup.splitlines()[-2]


def test_what_does_not_fit_together_is_refused(server):
    assert "needs the verbalizer's name, --av" in refused("explain", TEXT, "--engine", "vllm")
    assert "--vllm 'x': expected a JSON object" in refused(
        "explain", TEXT, "--av", AV, "--engine", "vllm", "--vllm", "x"
    )
    assert "Remove --url or --model" in refused(
        "explain", TEXT, "--url", server.url, "--model", "smollm2"
    )
    assert "expected one of 'fast'" in refused("explain", TEXT, "--av", AV, "--engine", "slow")
    assert "a server runs one verbalizer" in refused(
        "evaluate", AV, __file__, "--against", AV, "--url", server.url
    )
    assert "a server runs one verbalizer" in refused(
        "view", "--av", AV, "--av", AV, "--url", server.url
    )
