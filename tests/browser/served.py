"""A live page that a real server serves, for the tests and the pictures of this folder."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from nnsight_nla.live import Session
from nnsight_nla.live.server import application

PROMPT = "People in Paris speak French. The cow lives in the"
TOKEN = "a-token"


class Served:
    """A server that can be stopped, and started again at the same address."""

    def __init__(self, session: Session) -> None:
        self.session = session
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/{TOKEN}/"
        self.start()

    def start(self) -> None:
        config = uvicorn.Config(
            application(self.session, TOKEN), port=self.port, log_level="error",
            ws="websockets-sansio", lifespan="off", timeout_graceful_shutdown=1,
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=20)


@contextmanager
def serving(session: Session) -> Iterator[Served]:
    """Serve a session; stop the server and close the session afterwards."""
    made = Served(session)
    try:
        yield made
    finally:
        made.stop()
        session.close()
