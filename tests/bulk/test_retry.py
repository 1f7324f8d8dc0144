"""A host that is away is waited for; other errors are not."""

import threading
import time

import pytest

from nnsight_nla import HostError
from nnsight_nla.bulk import retry
from nnsight_nla.bulk.retry import host_is_away, retry_while_away


def away() -> HostError:
    error = HostError("gone")
    error.__cause__ = ConnectionRefusedError("refused")
    return error


def test_only_a_host_that_is_away_is_a_reason_to_wait():
    assert host_is_away(away())
    assert not host_is_away(HostError("the request itself is wrong"))


def test_a_step_is_tried_again_with_a_note_before_each_wait(monkeypatch):
    monkeypatch.setattr(retry, "_LONGEST_WAIT", 0.01)
    tries, notes = iter([away(), away(), None]), []

    def step():
        if error := next(tries):
            raise error
        return "done"

    assert retry_while_away(step, notes.append, threading.Event()) == "done"
    assert notes == ["the host is away; trying again in 0 s"] * 2


@pytest.mark.parametrize("error", [ValueError("a bug"), HostError("wrong")])
def test_another_error_is_raised_at_once(error):
    def step():
        raise error

    with pytest.raises(type(error)) as caught:
        retry_while_away(step, pytest.fail, threading.Event())
    assert caught.value is error


def test_waiting_ends_after_its_time_or_when_it_is_stopped(monkeypatch):
    def step():
        raise away()

    monkeypatch.setattr(retry, "_LONGEST_WAIT", 0.01)
    monkeypatch.setattr(retry, "MAX_WAIT", 0.02)
    with pytest.raises(HostError, match="gone"):
        retry_while_away(step, lambda _: None, threading.Event())
    monkeypatch.setattr(retry, "_LONGEST_WAIT", 60.0)
    monkeypatch.setattr(retry, "MAX_WAIT", 3600.0)
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    start = time.monotonic()
    with pytest.raises(HostError, match="gone"):
        retry_while_away(step, lambda _: None, stop)
    assert time.monotonic() - start < 10
