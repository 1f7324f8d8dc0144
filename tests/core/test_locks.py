"""Locks in a forked process: free, whoever held them."""

import os
import signal
import threading
import time

import pytest

from nnsight_nla.core.locks import Lock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def in_a_fork(work) -> int:
    """Run `work` in a fork; return its exit status, -1 if it hangs."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(1)
    for _ in range(1000):
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -1


def test_one_thread_may_take_it_twice():
    lock = Lock()
    with lock.held(), lock.held():
        pass


def test_a_lock_that_another_thread_holds_is_free_in_a_fork():
    lock, ready, done = Lock(), threading.Event(), threading.Event()

    def hold():
        with lock.held():
            ready.set()
            done.wait()

    def take():
        with lock.held():
            pass

    other = threading.Thread(target=hold)
    other.start()
    ready.wait()
    try:
        assert in_a_fork(take) == 0
        assert other.is_alive()
    finally:
        done.set()
        other.join()


def test_a_fork_by_the_thread_that_holds_it():
    lock = Lock()
    with lock.held():
        assert in_a_fork(lambda: None) == 0


def test_a_fork_while_another_thread_verbalizes_ends_in_a_text_or_an_error(nla, residuals):
    """It never hangs; a free model works, one in the middle of a trace says so."""
    import torch

    from nnsight_nla import Sampling, VerbalizationError

    torch.set_num_threads(1)
    short = Sampling(max_new_tokens=4)
    expected = nla.explain(residuals[-1], sampling=short).raw
    handle, done = (
        nla.explain(residuals.repeat(8, 1) * torch.linspace(1, 1.5, len(residuals) * 8)[:, None]),
        threading.Event(),
    )
    other = threading.Thread(target=lambda: (handle.text, done.set()))

    def read():
        try:
            assert nla.explain(residuals[-1], sampling=short).raw == expected
        except VerbalizationError as error:
            if "This process was forked while a trace was running" not in str(error):
                raise

    other.start()
    try:
        time.sleep(0.05)
        assert not done.is_set(), "the fork comes too late to show anything"
        statuses = [in_a_fork(read)]
        statuses += [in_a_fork(read) for _ in range(4)]
    finally:
        other.join()
    assert statuses == [0] * 5
    assert done.is_set()
