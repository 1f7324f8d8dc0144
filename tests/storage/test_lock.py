"""One process at a time; a lock that cannot be had is an error."""

import errno
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nnsight_nla.errors import NLAError, ReconstructionError
from nnsight_nla.storage.lock import locked
from tests.helpers.processes import start

HOLD = """
import sys
from pathlib import Path
from nnsight_nla.storage.lock import locked
with locked(Path(sys.argv[1]), busy="busy"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path: Path):
    process = start(HOLD, path)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("end", ["finished", "killed"])
def test_a_second_process_is_refused_until_the_first_ends(tmp_path, end):
    path = tmp_path / "lock"
    with holder(path) as process:
        with pytest.raises(ReconstructionError, match=r"^Another process writes out$"):
            with locked(path, busy="Another process writes out", error=ReconstructionError):
                pytest.fail("both hold the lock")
        if end == "killed":
            process.kill()
        process.stdin.close()
        process.wait()
        assert process.returncode == (-signal.SIGKILL if end == "killed" else 0)
    with locked(path, busy="busy"):
        pass


def test_a_lock_is_released_when_its_block_fails(tmp_path):
    path = tmp_path / "lock"
    for _ in range(2):
        with pytest.raises(ValueError, match="mine"), locked(path, busy="busy"):
            raise ValueError("mine")
    with locked(path, busy="busy"), pytest.raises(NLAError, match="busy"):
        with locked(path, busy="busy"):
            pytest.fail("both hold the lock")


@pytest.mark.parametrize("problem", [OSError(errno.ENOLCK, "No locks available"),
                                     NotImplementedError("no flock here")])  # fmt: skip
def test_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch, problem):
    def refuse(*_, **__):
        raise problem

    monkeypatch.setattr("nnsight_nla.storage.lock.FileLock.acquire", refuse)
    with pytest.raises(NLAError, match=r"lock cannot be locked .* file system that supports locks"):
        with locked(tmp_path / "lock", busy="busy"):
            pytest.fail("it is not locked")


def test_a_lock_file_that_cannot_be_made_says_so(tmp_path):
    path = tmp_path / "file" / "lock"
    path.parent.write_text("not a folder")
    with pytest.raises(NLAError, match=r"lock cannot be written \(.+\)\. Try again\."):
        with locked(path, busy="busy", advice="Try again."):
            pytest.fail("it is not locked")


def test_data_sets_need_no_fcntl():
    script = (
        "import sys, nnsight, torch, transformers\n"
        "sys.modules['fcntl'] = None\n"  # As on Windows; what others import it for is theirs.
        "import nnsight_nla.bulk\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
