"""Ends the server's processes when whoever started them is gone: `python reaper.py` at the far end
of a pipe.

It reads one process id a line, each the leader of a session of its own, and waits for the pipe to
close. That happens when the server is stopped, and just as well when pytest is killed: nothing else
has to work for the processes to go away. Then every process of those sessions is asked to end, and
five seconds later made to. Only the standard library, and no state but the list of ids.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_GRACE = 5.0
_POLL = 0.05


class Reaper:
    """The near end of the pipe: a reaper process, and the sessions it was told of."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._sessions: set[int] = set()
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, text=True, start_new_session=True
        )

    def watch(self, session: int) -> None:
        """Have this session ended, at the latest when the calling process is gone."""
        self._sessions.add(session)
        if self._process.stdin is not None:
            self._process.stdin.write(f"{session}\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End all of the sessions now, and return when they have."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        # Nothing is left, unless somebody ended the reaper before its work was done.
        end(self._sessions)


def main() -> None:
    """Collect session ids until the pipe closes, then end those sessions."""
    # An interrupt in the terminal is for the starter, which closes the pipe in its own time.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sessions = {int(line) for line in sys.stdin}
    end(sessions)


def end(sessions: set[int], grace: float = _GRACE) -> None:
    """End every process of these sessions: first asked, after `grace` seconds made to.

    With no grace they are not asked at all: it is a crash.
    """
    if grace > 0:
        _signal(sessions, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while members(sessions) and time.monotonic() < deadline:
            time.sleep(_POLL)
    # More than once: a process may start another between the look and the signal.
    for _ in range(20):
        if not members(sessions):
            return
        _signal(sessions, signal.SIGKILL)
        time.sleep(_POLL)


def members(sessions: set[int]) -> list[int]:
    """The ids of the processes that live in these sessions (a process that has ended does not)."""
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # "pid (name) state ppid pgrp session ...", and the name may hold anything.
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(session) in sessions and state != "Z":
            found.append(int(stat.parent.name))
    return found


def _signal(sessions: set[int], number: signal.Signals) -> None:
    for process in members(sessions):
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


if __name__ == "__main__":
    main()
