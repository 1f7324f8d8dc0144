"""``nnsight-nla view``: what it loads, and what the code on its cards says."""

import runpy

import pytest
from typer.testing import CliRunner

from nnsight_nla import NLAError, tiny
from nnsight_nla.cli import app
from nnsight_nla.live import server
from tests.live.conftest import Page


@pytest.fixture
def served(monkeypatch):
    """The options of the server that would run, and the code of a token that is explained."""
    found = {}

    def serve(session, **options):
        options["started"]("http://127.0.0.1:1/token/")
        page = Page(session)
        found.update(options, layers=[run.layer for run in session.runs.values()])
        if session.runs:
            page.ask("explain", run=0, positions=[2])
            found.update(session.runs[0].records[2])

    monkeypatch.setattr(server, "serve", serve)
    return found


def run(*words):
    return CliRunner().invoke(app, ["view", *words], catch_exceptions=False)


def test_it_serves_the_bundled_pair_on_this_machine_only(served, tmp_path, capsys):
    done = run("People in Paris speak")
    assert done.stdout == "http://127.0.0.1:1/token/\n"
    assert (served["host"], served["port"], served["layers"]) == ("127.0.0.1", 8010, [3])
    file = tmp_path / "card.py"
    file.write_text(served["code"], "utf-8")
    runpy.run_path(str(file))
    assert capsys.readouterr().out.strip() == served["explanation"]


def test_ones_own_models_one_for_each_layer(served, tmp_path):
    paths = {name: str(path) for name, path in tiny.paths().items()}
    words = ["--av", paths["av"], "--ar", paths["ar"], "--target", paths["target"]]
    run("People in Paris speak", *words, *words[:4], "--port", "0")
    assert served["layers"] == [3, 3]
    assert f"nlas = [NLA({paths['av']!r}, ar={paths['ar']!r}), NLA(" in served["code"]
    assert "nlas[0].explain(nlas[0].layer(model).output[0, 2]" in served["code"]
    compile(served["code"], "card", "exec")


def test_the_code_loads_the_models_as_the_command_did(served, tmp_path, capsys):
    paths = {name: str(path) for name, path in tiny.paths().items()}
    words = ["--av", paths["av"], "--target", paths["target"], "--dtype", "float32"]
    run("People in Paris speak", *words, "--device-map", "cpu")
    loaded = "dtype='float32', device_map='cpu')"
    assert f"nla = NLA({paths['av']!r}, {loaded}" in served["code"]
    assert (
        f"TransformersModel({paths['target']!r}, task='text-generation', {loaded}" in served["code"]
    )
    file = tmp_path / "card.py"
    file.write_text(served["code"], "utf-8")
    runpy.run_path(str(file))
    assert capsys.readouterr().out.strip() == served["explanation"]


def test_a_layer_that_the_verbalizer_was_not_trained_on(served):
    with pytest.raises(NLAError, match="layer=1: the verbalizer was trained on layer 3"):
        run("--layer", "1")


def test_reconstructors_are_as_many_as_verbalizers(served):
    with pytest.raises(NLAError, match="2 --ar for 1 --av"):
        run("--av", "a", "--ar", "b", "--ar", "c")
