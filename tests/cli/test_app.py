"""Messages of the library, which name Python arguments, name flags on the command line."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nnsight_nla import CheckpointError, NLAWarning
from nnsight_nla.cli import main
from nnsight_nla.cli.app import app, in_flags
from tests.helpers.published import base, publish, records


@pytest.mark.parametrize(
    ("command", "python", "flags"),
    [
        ("train", "Hold out more (held_out=0.2), or", "Hold out more (--held-out 0.2), or"),
        ("train", "Choose another out=, or remove it.", "Choose another --out, or remove it."),
        ("train", "Pass base='Qwen/Qwen3-8B'; or,", "Pass --base 'Qwen/Qwen3-8B'; or,"),
        (
            "train",
            "Train in float32: Settings(precision='float32').",
            "Train in float32: --no-bf16.",
        ),
        ("read", "positions='reply': expected", "--position 'reply': expected"),
        ("run", "Leave out strict=True.", "Leave out --strict."),
        ("run", "or pass score=False.", "or pass --no-score."),
        ("run", "Name the column: text='body'.", "Name the column: --text-column 'body'."),
        # What is no option of the command, and what is Python on purpose, stays.
        ("evaluate", "generate=3 and remote=False", "generate=3 and remote=False"),
        ("run", "Load it: NLA(av, dtype='float32').", "Load it: NLA(av, dtype='float32')."),
        ("run", "split(strict=True)", "split(strict=True)"),
        ("doctor", "remote=False", "remote=False"),
    ],
)
def test_python_arguments_become_flags(command, python, flags):
    assert in_flags(python, command) == flags


def test_a_librarys_message_on_the_command_line(tmp_path, monkeypatch, capsys):
    base(tmp_path / "base")
    rows = publish(tmp_path / "rows.parquet", records(8))
    command = ["train", "av", rows, "--base", tmp_path / "base", "--out", tmp_path / "av"]
    monkeypatch.setattr(sys, "argv", ["nnsight-nla", *map(str, command), "--layer", "3"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "TrainingError: --layer 3, but the vectors of" in said


@pytest.fixture
def made(monkeypatch):
    """What the command line makes an NLA of; it is not made."""
    calls = []

    class Made(Exception):  # noqa: N818
        pass

    def nla(*args, **options):
        calls.append((args, options))
        raise Made

    monkeypatch.setattr("nnsight_nla.nla.NLA", nla)
    return calls


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"date": None}),
        (["--date", "2026-11-26"], {"date": "2026-11-26"}),
        (["--trust-remote-code"], {"date": None, "trust_remote_code": True}),
    ],
)
def test_options_before_the_command_reach_every_nla(made, tmp_path, flags, expected):
    source = tmp_path / "in.jsonl"
    source.write_text('{"text": "People in Paris"}')
    CliRunner().invoke(app, ["--date", "2020-01-01", "--trust-remote-code", "explain", "x"])
    for command in (["explain", "x"], ["read", "x"], ["run", str(source), "out.parquet"]):
        made.clear()
        CliRunner().invoke(app, [*flags, *command, "--av", "mine", "--target", "its"])
        ((_, options),) = made
        found = {key: options[key] for key in ("date", "trust_remote_code") if key in options}
        assert found == expected


def test_warnings_of_the_library_are_one_line_that_names_flags(monkeypatch, capsys):
    folder = "no such folder"

    def warn(*args, **options):
        warnings.warn("pass NLA(..., date='2026-11-27'), or out=.", NLAWarning, stacklevel=2)
        warnings.warn("another library's", UserWarning, stacklevel=2)
        raise CheckpointError("date='tomorrow': expected a date")

    monkeypatch.setattr("nnsight_nla.nla.NLA", warn)
    monkeypatch.setattr(sys, "argv", ["nnsight-nla", "--date", "x", "explain", "t", "--av", folder])
    with pytest.warns(UserWarning, match="another library's"), pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "Warning: pass nnsight-nla --date 2026-11-27 COMMAND, or out=.\n" in said
    assert "CheckpointError: --date 'tomorrow': expected a date" in said


def test_a_module_of_our_name_does_not_hide_the_standard_library():
    script = "import inspect, nnsight_nla.cli.app; print(inspect.__file__)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()).parent == Path(subprocess.__file__).parent
