"""Messages of the library, which name Python arguments, name flags on the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from nnsight_nla.cli import main
from nnsight_nla.cli.app import in_flags
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


def test_a_module_of_our_name_does_not_hide_the_standard_library():
    script = "import inspect, nnsight_nla.cli.app; print(inspect.__file__)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert Path(ran.stdout.strip()).parent == Path(subprocess.__file__).parent
