"""New processes that do not each import PyTorch: they are forked from one that has.

Importing torch, transformers and nnsight takes five seconds of a processor, and many tests need a
new process. A forked one has its own arguments, environment, folder, pipes and exit code, and can
be killed; nothing of this package is imported in it. Where forking is not safe (macOS), it is an
ordinary new process. Tests of imports, and of the seed of hashes, need `subprocess`.

    done = run("from nnsight_nla.cli import main; main()", "explain", "The cow")
    with start(SCRIPT, folder) as process:
        process.kill()
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO

import torch

_ROOT = Path(__file__).parents[2]
_SERVER = """
import json, os, signal, socket, sys
import torch, torch._dynamo, transformers.pipelines, transformers.trainer, nnsight
from transformers.models.qwen3 import modeling_qwen3

asked = socket.socket(fileno=int(sys.argv[1]))
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    task, files, *_ = socket.recv_fds(asked, 1 << 20, 4)
    if not task:
        sys.exit()
    if os.fork() == 0:  # It waits for the process and tells how that ended.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        process = os.fork()
        if process == 0:
            break
        os.write(files[3], f"{process}\\n".encode())
        for file in files[:3]:
            os.close(file)
        ended = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        os.write(files[3], f"{ended}\\n".encode())
        os._exit(0)
    for file in files:
        os.close(file)

asked.close()
for number, file in enumerate(files[:3]):
    os.dup2(file, number)
for file in files:
    os.close(file)
task = json.loads(task)
sys.argv = ["-c", *task["arguments"]]
os.environ.clear()
os.environ.update(task["environment"])
os.chdir(task["folder"])
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
exec(compile(task["code"], "<string>", "exec"))
"""


def run(
    code: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a script in a new process; return its output and exit code. The rest as for `start`."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as error:
        files = {"out": out, "error": error}
        with start(code, *arguments, environment=environment, folder=folder, **files) as process:
            pass
        for file in files.values():
            file.seek(0)
        assert process.returncode is not None
        return subprocess.CompletedProcess(
            [code, *map(str, arguments)], process.returncode, out.read(), error.read()
        )


def run_together(code: str, *arguments: object, count: int = 2) -> str:
    """Run a script in processes that train together, as torchrun does; return their outputs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    world |= dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(count))
    with tempfile.TemporaryFile("w+") as out:
        processes = [
            start(
                code,
                *arguments,
                environment={**world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                out=out,
                error=out,
            )
            for rank in range(count)
        ]
        for process in processes:
            with process:
                pass
        out.seek(0)
        said = out.read()
    assert [each.returncode for each in processes] == [0] * count, said
    return said


def start(
    code: str,
    *arguments: object,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    out: IO[str] | None = None,
    error: IO[str] | None = None,
) -> Process | subprocess.Popen[str]:
    """Start a script in a new process, with as many threads as this one has.

    Args:
        code: The script.
        arguments: Its arguments.
        environment: Variables that it has beside those of this process.
        folder: Its working folder.
        out: The file of its output; by default a pipe, `stdout`.
        error: The file of its errors; by default none.
    """
    path = filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")])
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        **(environment or {}),
    }
    said = [*map(str, arguments)]
    if sys.platform == "linux":
        return Process(code, said, variables, folder or Path.cwd(), out, error)
    return subprocess.Popen(
        [sys.executable, "-c", code, *said],
        env=variables,
        cwd=folder,
        text=True,
        stdin=subprocess.PIPE,
        stdout=out or subprocess.PIPE,
        stderr=error or subprocess.DEVNULL,
    )


class Process:
    """A forked process, with what the tests use of `subprocess.Popen`."""

    def __init__(
        self,
        code: str,
        arguments: list[str],
        environment: dict[str, str],
        folder: Path,
        out: IO[str] | None,
        error: IO[str] | None,
    ) -> None:
        """Use `start` to make one."""
        task = {
            "code": code, "arguments": arguments, "environment": environment, "folder": str(folder)
        }  # fmt: skip
        (input_, to), (from_, output), (status, told) = (os.pipe() for _ in range(3))
        nothing = os.open(os.devnull, os.O_WRONLY)
        files = [
            input_,
            output if out is None else out.fileno(),
            nothing if error is None else error.fileno(),
            told,
        ]
        socket.send_fds(_server(), [json.dumps(task).encode()], files)
        for file in (input_, output, nothing, told):
            os.close(file)
        self.stdin, self.stdout = os.fdopen(to, "w"), os.fdopen(from_)
        self._status = os.fdopen(status)
        self.pid = int(self._status.readline())
        self.returncode: int | None = None

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Wait until it ends; return its exit code."""
        if self.returncode is None:
            self.returncode = int(self._status.readline())
        return self.returncode

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None
    ) -> None:
        self.stdin.close()
        self.wait()
        self.stdout.close()
        self._status.close()


@functools.cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVER, str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    theirs.close()

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours
