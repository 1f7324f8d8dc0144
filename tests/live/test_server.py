"""The server gives its page and its session to who has the address, and to nobody else."""

import contextlib
import html
import http.client
import json
import socket
import threading
import time

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from nnsight_nla import NLAError
from nnsight_nla.live import server as serving
from nnsight_nla.live.server import application, serve

TOKEN = "a-token"
OWN = {"host": "127.0.0.1:8010", "origin": "http://127.0.0.1:8010"}


@pytest.fixture(scope="module")
def client(session):
    return TestClient(application(session, TOKEN), base_url="http://127.0.0.1:8010")


def until(socket, number):
    found = []
    while not found or found[-1]["type"] not in ("done", "error") or found[-1].get("id") != number:
        found.append(json.loads(socket.receive_text()))
    return found


def test_the_page_is_whole_and_loads_nothing(client):
    answer = client.get(f"/{TOKEN}/")
    assert answer.status_code == 200
    policy = html.unescape(answer.text.split('Content-Security-Policy" content="')[1].split('"')[0])
    assert "connect-src 'self'" in policy
    assert "default-src 'none'" in policy
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"
    assert answer.headers["cache-control"] == "no-store"
    assert not any(name.startswith("access-control") for name in answer.headers)
    assert "http://" not in answer.text.replace("http://www.w3.org", "")


@pytest.mark.parametrize("path", ["/", "/wrong/", f"/{TOKEN}x/", "/docs", f"/{TOKEN}/../x"])
def test_without_the_token_there_is_nothing(client, path):
    answer = client.get(path)
    assert answer.status_code == 404
    assert TOKEN not in answer.text


def test_a_socket_explains(client):
    with client.websocket_connect(f"/{TOKEN}/socket", headers=OWN) as socket:
        socket.send_json({"type": "explain", "id": 7, "run": 0, "positions": [2]})
        messages = until(socket, 7)
    assert messages[0]["type"] == "run"
    assert {"queued", "text", "token", "done"} >= {each["type"] for each in messages[2:]}
    assert messages[-1] == {"type": "done", "id": 7}


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/wrong/socket", OWN),
        (f"/{TOKEN}/socket", {**OWN, "origin": "https://evil.example"}),
        (f"/{TOKEN}/socket", {**OWN, "origin": "http://127.0.0.1:9999"}),
        (f"/{TOKEN}/socket", {**OWN, "origin": "null"}),
        (f"/{TOKEN}/socket", {"host": "evil.example:8010", "origin": "http://evil.example:8010"}),
    ],
)
def test_a_socket_of_somebody_else_is_refused(client, path, headers):
    with (
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(path, headers=headers),
    ):
        pass


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "evil.example:8010"}, 421),
        ({"host": "192.0.2.7:8010"}, 421),
        ({"origin": "https://evil.example"}, 403),
        ({"content-length": str(100 << 20)}, 413),
        ({"host": "localhost:8010"}, 200),
        ({"host": "[::1]:8010"}, 200),
    ],
)
def test_requests_of_other_hosts_and_origins_and_of_any_size(client, headers, status):
    assert client.get(f"/{TOKEN}/", headers=headers).status_code == status


def test_an_address_for_other_machines_has_no_other_names(session):
    client = TestClient(application(session, TOKEN, host="0.0.0.0"), base_url="http://10.0.0.7")
    assert client.get(f"/{TOKEN}/").status_code == 200
    assert client.get(f"/{TOKEN}/", headers={"host": "evil.example"}).status_code == 421


@pytest.fixture(scope="module")
def running(session):
    """A real server, for what the test client does not do: (port, token)."""
    address, made = [], []
    real = serving.secrets.token_urlsafe

    import uvicorn

    class Server(uvicorn.Server):
        def __init__(self, config):
            super().__init__(config)
            made.append(self)

        @contextlib.contextmanager
        def capture_signals(self):
            yield

    patch = pytest.MonkeyPatch()
    patch.setattr(uvicorn, "Server", Server)
    thread = threading.Thread(
        target=serve, args=(session,), kwargs={"port": 0, "started": address.append}
    )
    thread.start()
    while not (made and made[0].started):
        time.sleep(0.01)
    port = int(address[0].split(":")[2].split("/")[0])
    yield port, address[0].split("/")[3]
    made[0].should_exit = True
    thread.join(timeout=20)
    patch.undo()
    assert real is serving.secrets.token_urlsafe


def test_tokens_are_random_and_long(running):
    assert len(running[1]) >= 20


@pytest.mark.parametrize("how", ["length", "chunks"])
def test_a_request_of_100_mb_is_refused_before_it_is_read(running, how):
    port, token = running
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        size = "Content-Length: 104857600" if how == "length" else "Transfer-Encoding: chunked"
        connection.sendall(
            f"POST /{token}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{size}\r\n\r\n".encode()
        )
        chunk = b"x" * 65536 if how == "length" else b"10000\r\n" + b"x" * 65536 + b"\r\n"
        with contextlib.suppress(OSError):
            while sent < 100 << 20:
                connection.sendall(chunk)
                sent += len(chunk)
        answer = b""
        with contextlib.suppress(OSError):
            answer = connection.recv(4096)
    assert sent < 50 << 20
    assert not answer or answer.split()[1] in (b"413", b"411")
    other = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    other.request("GET", f"/{token}/")
    assert other.getresponse().status == 200
    other.close()


def connected(port, token):
    from websockets.sync.client import connect

    return connect(
        f"ws://127.0.0.1:{port}/{token}/socket", origin=f"http://127.0.0.1:{port}", max_size=None
    )


def test_a_message_of_100_mb_closes_its_own_connection_only(running):
    from websockets.exceptions import ConnectionClosed

    port, token = running
    with connected(port, token) as other, connected(port, token) as large:
        with contextlib.suppress(ConnectionClosed):
            large.send("x" * (100 << 20))
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                large.recv(timeout=20)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
        other.send(json.dumps({"type": "explain", "id": 1, "run": 0, "positions": [1]}))
        while json.loads(other.recv(timeout=30))["type"] != "done":
            pass


def test_a_thousand_requests_at_once_are_all_answered(running):
    port, token = running
    with connected(port, token) as page:
        for number in range(1000):
            page.send(json.dumps({"type": "explain", "id": number, "run": 1, "positions": [1]}))
        ended = {}
        while len(ended) < 1000:
            message = json.loads(page.recv(timeout=60))
            if message["type"] in ("done", "error"):
                ended[message["id"]] = message
    refused = [each for each in ended.values() if each["type"] == "error"]
    assert all("Too many requests" in each["message"] for each in refused)
    assert len(refused) < 1000


def test_a_port_that_is_taken(session, running):
    with pytest.raises(NLAError, match=r"port=\d+: Address already in use.*port=0"):
        serve(session, port=running[0])


def test_without_its_packages_the_server_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(NLAError, match=r"package uvicorn: pip install 'nnsight-nla\[view"):
        serving.check_installed()
