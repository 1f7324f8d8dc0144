"""The command line as a person types it: in a process of its own, with its exit codes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_group
from typer.testing import CliRunner

import nnsight_nla
from nnsight_nla import cli, tiny

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process."""
    command = [sys.executable, "-c", "from nnsight_nla.cli import main; main()", *arguments]
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=300, check=False
    )


def test_demo_shows_truth_next_to_explanation_and_a_patch():
    done = run("demo", "--sentences", "1")
    assert done.returncode == 0, done.stderr
    assert "explanation of the residual" in done.stdout
    assert "truth" in done.stdout
    assert "Rome -> Paris" in done.stdout
    assert "slots are right" in done.stdout
    assert done.stderr == ""


def test_demo_as_json_is_one_document_with_the_figures_it_shows():
    done = run("demo", "--sentences", "2", "--json")
    found = json.loads(done.stdout)
    rows = [row for sentence in found["sentences"] for row in sentence]
    right = sum(row["slots_right"] for row in rows)
    assert len(found["sentences"]) == 2
    assert right >= 0.85 * 6 * len(rows)
    assert found["patch"]["predicted"] == ["Italian", "French"]
    assert "Rome" in found["patch"]["explanation"][0]
    assert "Paris" in found["patch"]["explanation"][1]


def test_explain_as_json():
    done = run("explain", "The cow lives in the", "--position", "1,-1", "--json")
    found = json.loads(done.stdout)
    assert found["layer"] == 3
    assert [each["position"] for each in found["explanations"]] == [1, 4]
    assert [each["token"].strip() for each in found["explanations"]] == ["cow", "the"]
    assert "About the cow" in found["explanations"][1]["text"]
    label = found["explanations"][1]["label"]
    assert label["grade"] == "strong"
    assert label["line"].startswith("reconstruction: strong (cosine 0.9")


def test_read_shows_every_token_and_writes_a_page(tmp_path):
    done = run("read", "The cow lives in the")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("About the cow") == 4
    assert "strong 0.9" in done.stdout
    page = tmp_path / "cow.html"
    done = run("read", "The cow lives in the", "--html", str(page), "--position", "1,-1")
    assert "2 of 5 tokens explained" in done.stdout
    assert "About the cow" in page.read_text("utf-8")


def test_read_a_chat_and_its_reply_as_json():
    done = run(
        "read", "The cow", "--chat", "--generate", "2", "--position", "reply", "--json"
    )  # fmt: skip
    found = json.loads(done.stdout)
    parts = [each["part"] for each in found["tokens"]]
    assert parts[3:5] == ["user", "user"]
    assert parts[-2:] == ["reply", "reply"]
    assert [bool(each["explanation"]) for each in found["tokens"]] == [
        part == "reply" for part in parts
    ]
    assert found["layer"] == 3


def test_explain_shows_the_trust_label_and_what_its_fve_is_a_fraction_of():
    done = run("explain", "What a lovely day! People in Paris speak", "--position", "1,-1")
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()[1:]
    assert heading.split("┃")[4].strip() == "trust"
    cells = [row.split("│")[4].strip() for row in rows if row.startswith("│")]
    assert cells.count("reconstruction: strong") == 2
    for start in ("cosine 0.9", "FVE 0.9", "against other vectors"):
        assert len([cell for cell in cells if cell.startswith(start)]) == 2
    assert "FVE (denominator 0.9718: the variance of 18,000 vectors" in done.stdout


def test_a_reply_that_was_cut_off_is_graded_none_with_its_reason():
    done = run("explain", "The cow lives in the", "--max-new-tokens", "9")
    assert done.returncode == 0, done.stderr
    assert "none" in done.stdout
    assert "the reply has no closing </explanation> tag" in " ".join(done.stdout.split())


def test_explain_with_a_checkpoint_of_ones_own_reads_the_target_from_the_sidecar_or_the_option():
    folders = tiny.paths()
    done = run("explain", "The cow", "--av", str(folders["av"]), "--target", str(folders["target"]))
    assert done.returncode == 0, done.stderr
    assert "cow" in done.stdout
    assert "trust" not in done.stdout  # nothing to measure it with


def test_a_reconstructor_of_ones_own_gives_the_same_label():
    models = [f"--{name}={folder}" for name, folder in tiny.paths().items()]
    command = ("explain", "The cow lives in the", "--json", "--dtype", "float32")
    given, embedded = (json.loads(run(*command, *each).stdout) for each in (models, []))
    assert given["explanations"][0]["trust"] == embedded["explanations"][0]["trust"]
    assert given["explanations"][0]["grade"] == "strong"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["explain", "hi", "--position", "x"],
            "--position 'x': expected an index, several (0,3,-1)",
        ),
        (["explain", "The cow", "--position", "7"], "the text has 2 tokens, 0 to 1"),
        (["read", "The cow", "--position", "7"], "--position [7]: the text has 2 tokens, 0 to 1"),
        (["read", "The cow", "--position", "reply"], "--position 'reply': expected 'all', 'reply'"),
        (["read", "The cow", "--html", "/nowhere/a.html"], "there is no folder /nowhere"),
        (["read", "The cow", "--position", "some"], "--position 'some': expected an index"),
        (
            ["explain", "hi", "--target", "somewhere"],
            "needs the verbalizer that was trained for it",
        ),
        (["explain", "hi", "--ar", "somewhere"], "--ar somewhere needs the verbalizer"),
        (["explain", "hi", "--av", "/nowhere"], "neither a folder on this machine"),
        (["info", "/nowhere"], "neither a folder on this machine"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_1(arguments, message):
    done = run(*arguments)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_wrong_command_line_is_exit_code_2():
    assert CliRunner().invoke(cli.app, ["explain"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["demo", "--sentences", "0"]).exit_code == 2
    assert CliRunner().invoke(cli.app, ["no-such-command"]).exit_code == 2


def test_version():
    done = CliRunner().invoke(cli.app, ["--version"])
    assert (done.exit_code, done.stdout) == (0, f"nnsight-nla {nnsight_nla.__version__}\n")


@pytest.mark.parametrize("command", ["", *get_group(cli.app).commands])
def test_help_explains_every_argument_and_option(command):
    arguments = [*filter(None, [command]), "--help"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    for parameter in get_group(cli.app).commands[command].params if command else []:
        assert parameter.help, parameter.name


def test_info_shows_where_each_value_was_found():
    runner = CliRunner()
    done = runner.invoke(cli.app, ["info", "ceselder/nanonla-l24-av-qwen3-8b", "--json"])
    found = json.loads(done.stdout)
    assert found["layer"] == 24
    assert found["injection"] == {"operation": "add", "site": "block", "layer": 1, "scale": None}
    assert found["source"]["layer"] == "preset ceselder/nanonla-l24-av-qwen3-8b"
    table = runner.invoke(cli.app, ["info", str(tiny.paths()["av"])])
    assert table.exit_code == 0
    assert "extraction.layer_index" in table.stdout.replace("\n", "")


def test_an_interrupt_is_exit_code_130(monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", interrupt)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 130
