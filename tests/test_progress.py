"""One bar on a terminal, none elsewhere."""

import io
import os
import signal
import threading

import pytest
from tqdm.std import tqdm

from nnsight_nla import progress as module
from nnsight_nla.progress import progress
from tests.core.test_locks import in_a_fork


class Terminal(io.StringIO):
    """Standard error that somebody watches."""

    def isatty(self) -> bool:
        return True


def watch(monkeypatch, delay=0):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setattr(module, "_DELAY", delay)
    monkeypatch.setattr(module, "_INTERVAL", 0)  # Every update is drawn.
    return terminal


def three(**options):
    with progress("reading", total=3, unit="text", **options) as bar:
        for count in range(3):
            bar.advance(1, note=f"{count} done")


def test_nothing_is_shown_without_a_terminal_or_where_it_is_not_wanted(capsys, monkeypatch):
    three()
    assert capsys.readouterr() == ("", "")
    terminal = watch(monkeypatch)
    three(shown=False)
    assert terminal.getvalue() == ""


def test_a_process_that_is_killed_while_it_draws_does_not_stop_others():
    """tqdm's own lock is shared by a process and its forks."""
    three()
    child = os.fork()
    if not child:
        with module._kind().get_lock():
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    three()
    assert tqdm.get_lock() is not module._kind().get_lock()


def test_a_fork_while_a_thread_draws_can_draw():
    held, done = threading.Event(), threading.Event()

    def draws():
        with module._kind().get_lock():
            held.set()
            done.wait()

    thread = threading.Thread(target=draws)
    thread.start()
    held.wait()
    assert in_a_fork(three) == 0
    done.set()
    thread.join()


def test_a_bar_shows_its_count_its_rate_and_its_note(capsys, monkeypatch):
    terminal = watch(monkeypatch)
    with progress("reading", total=3, unit="text", initial=1) as bar:
        bar.advance(1, note="12 rows/s")
    shown = terminal.getvalue()
    assert capsys.readouterr().out == ""
    assert "reading:  67%" in shown
    assert "2/3" in shown
    assert "text/s" in shown
    assert "12 rows/s" in shown
    assert shown.endswith("\r")  # It is wiped at the end.


def test_work_of_less_than_a_second_shows_nothing(monkeypatch):
    terminal = watch(monkeypatch, delay=module._DELAY)
    three()
    assert "reading" not in terminal.getvalue()


def test_a_note_is_shown_at_once(monkeypatch):
    terminal = watch(monkeypatch, delay=module._DELAY)
    with progress("reading", total=3, unit="text") as bar:
        bar.note("the host is away")
        assert "0/3" in terminal.getvalue()
        assert "the host is away" in terminal.getvalue()


@pytest.mark.parametrize("shown", [True, False])
def test_a_bar_inside_a_bar_is_silent_in_any_thread(monkeypatch, shown):
    def inner():
        with progress("inner", total=1, unit="text") as bar:
            bar.note("a note")
            bar.advance(1)

    terminal = watch(monkeypatch)
    with progress("outer", total=2, unit="row", shown=shown) as bar:
        inner()
        thread = threading.Thread(target=inner)
        thread.start()
        thread.join()
        bar.advance(2)
    assert ("outer" in terminal.getvalue()) == shown
    assert "inner" not in terminal.getvalue()
    inner()
    assert "inner" in terminal.getvalue()


def test_a_failure_closes_the_bar(monkeypatch):
    terminal = watch(monkeypatch)
    with pytest.raises(ValueError, match="mine"), progress("outer", total=2, unit="row"):
        raise ValueError("mine")
    three()
    assert "reading" in terminal.getvalue()
