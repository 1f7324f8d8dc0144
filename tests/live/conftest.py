"""A session of the tiny pair, and a client that waits for answers."""

import queue

import pytest

from nnsight_nla.live import Session
from nnsight_nla.live import session as sessions

SETUP = "from nnsight_nla import tiny\nmodel, nla = tiny.load()"
PARIS, ROME = "People in Paris speak", "People in Rome speak"


class Page:
    """What a page does: it sends messages and keeps what it gets."""

    def __init__(self, session):
        self.got = queue.Queue()
        self.client = session.connect(self.got.put)
        self.number = 0

    def send(self, kind, **fields):
        self.number += 1
        self.client.handle({"type": kind, "id": self.number, **fields})
        return self.number

    def until(self, *ids):
        """Return all messages up to the end of these requests."""
        found, left = [], set(ids)
        while left:
            message = self.got.get(timeout=60)
            found.append(message)
            if message["type"] in ("done", "error", "cancelled"):
                left.discard(message.get("id"))
        return found

    def ask(self, kind, **fields):
        return self.until(self.send(kind, **fields))

    def now(self):
        """Return the messages that are there already."""
        return [self.got.get_nowait() for _ in range(self.got.qsize())]


def of(kind, messages):
    return [message for message in messages if message["type"] == kind]


@pytest.fixture(scope="module")
def session(pair):
    model, nla = pair
    made = Session(model, nla, setup=SETUP)
    made.open(PARIS)
    made.open(ROME)
    yield made
    made.close()


@pytest.fixture
def page(session):
    made = Page(session)
    made.now()
    yield made
    made.client.close()


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_WAITING", 5)
